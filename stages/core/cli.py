"""The command line that all stages share: options, places, exit codes.

A stage's `main` is one call of `run_stage`. Exit codes: 0 done, 2 a mistake that one line on
stderr explains, 3 with `--check` an output that is yet to be made, 130 interrupted (in the first
moments by `stages` itself).
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import orjson

from stages.core import progress
from stages.core.artifact import MANIFEST, is_current, read_manifest, refuse_busy
from stages.core.blas import describe_blas, ensure_fast_blas
from stages.core.errors import INTERRUPTED, INTERRUPTED_CODE, StageError, StageFailed
from stages.core.fixes import FixSet, arm_name, arm_slug, fixes_until, parse_fixes, takes_option
from stages.core.flags import (
    ROW_FLAGS,
    SEED_LIMIT,
    SINGLE_OPTIONS,
    ShowHelp,
    add_section,
    folder,
    is_taken,
    option_words,
    whole_number,
)
from stages.core.interrupts import catch_interrupts
from stages.core.preset import SECTIONS, Preset, load_preset, section_of
from stages.core.records import Given, Manifest, Recipe
from stages.core.words import show_controls

# Stages whose place does not depend on the seed; with --valid-share convert_data draws rows with it.
SEEDLESS = ("convert_data", "audit")
TO_MAKE = 3  # exit code of `--check`; an error of ours would be 1
CUDA_DRIVER = "libcuda.so.1"  # comes with NVIDIA's driver, not with a package
UNUSABLE_PLACE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),  # no room
    *(errno.EACCES, errno.EPERM),  # no right
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG),  # no such place possible
}


def artifacts_root() -> Path:
    """The folder of all outputs: `artifacts`, or what FAIR_RETEST_ARTIFACTS names."""
    return Path(os.environ.get("FAIR_RETEST_ARTIFACTS") or "artifacts")


def place_words() -> str:
    """What tells a command for a shell that the outputs are not in `artifacts`; ends with a space."""
    root = artifacts_root()
    return "" if root == Path("artifacts") else f"FAIR_RETEST_ARTIFACTS={shlex.quote(str(root))} "


def blas_folder() -> Path:
    """Where the BLAS library is kept; preloading takes no path with a space or a colon."""
    folder = (artifacts_root() / "blas").absolute()
    return Path.home() / ".cache" / "fair-retest" / "blas" if re.search(r"[ :]", str(folder)) else folder


@dataclass(frozen=True)
class Options:
    """The resolved options of one run of one stage."""

    preset: Preset
    fixes: FixSet
    seed: int = 0
    data: Path | None = None
    out: Path | None = None
    force: bool = False
    json: bool = False
    check: bool = False  # whether to make nothing, and only say whether there is something to make
    overrides: dict[str, Any] = field(default_factory=dict)
    model: str | None = None  # what --model said; None: the preset's name
    rows: dict[str, Any] = field(default_factory=dict)  # what the flags of the rows said

    @property
    def arm(self) -> str:
        """`fair`, `flawed` or the fixes joined by `+`."""
        return arm_name(self.fixes)

    @property
    def parser(self) -> str:
        """The dialect in which this arm's replies are read strictly."""
        setup = self.preset.model
        return setup.dialect if "parser" in self.fixes else setup.legacy_dialect

    @property
    def bits(self) -> int:
        """The bits that this arm's model is quantized to."""
        setup = self.preset.quantize
        return setup.bits if "six_bit" in self.fixes else setup.legacy_bits

    def place(self, stage: str) -> Path:
        """Where the output of a stage lives by default, shared by arms that share the work."""
        folder = artifacts_root() / self.preset.name / stage / arm_slug(self.fixes, stage)
        return folder if stage in SEEDLESS else folder / f"seed{self.seed}"

    def output(self, stage: str) -> Path:
        """`--out`, or the default place."""
        return self.out or self.place(stage)

    def input(self, stage: str) -> Path:
        """`--data`, or the default place of the upstream stage."""
        return self.data or self.place(stage)

    def command(self, stage: str) -> str:
        """The shell command that makes the output of a stage for these options, its own ones among them."""
        seed = "" if stage in SEEDLESS or self.seed == 0 else f" --seed {self.seed}"
        own = {k: v for k, v in self.overrides.items() if is_taken(k, stage)}
        if stage != "audit":  # which looks at the whole plan, and takes what the arm does not
            own = {k: v for k, v in own.items() if takes_option(self.fixes, k)}
        own |= self.rows if stage in ("convert_data", "retest_fair") else {}
        words = [word for name, value in own.items() for word in option_words(name, value)]
        model = shlex.quote(self.model or self.preset.name)
        start = f"{place_words()}nox -s {stage} -- --model {model} --fixes {self.arm}{seed}"
        return " ".join([start, *map(shlex.quote, words)])

    @property
    def given(self) -> Given:
        """What the command line said, for the manifest of what is made with it."""
        data = None if self.data is None else str(self.data)
        return Given(model=self.model or self.preset.name, data=data, options=self.overrides, rows=self.rows)

    def repeat(self, made: Manifest) -> str:
        """The command that says again what was said when an output of an earlier stage was made.

        Its data and options are its own: this command's would make another one in its place.
        """
        stage, given, settings = made.recipe.stage, made.given, made.recipe.settings
        if given is None:
            return self.command(stage) + self._out
        fixes = tuple(settings.get("fixes", self.fixes))
        told = replace(
            self,
            fixes=self.fixes if fixes_until(self.fixes, stage) == fixes else fixes,
            seed=self.seed if made.seed is None else made.seed,
            model=given.model,
            overrides=given.overrides,
            rows=given.rows,
        )
        seed = f" --seed {settings['seed']}" if stage in SEEDLESS and settings.get("seed") else ""
        words = [] if given.data is None else ["--data", given.data]
        words += [word for name, value in given.flags.items() for word in option_words(name, value)]
        return " ".join([f"{told.command(stage)}{seed}", *map(shlex.quote, words)]) + self._out

    @property
    def _out(self) -> str:
        """What has the input folder of this command made, where it is not the usual one."""
        return "" if self.data is None else f" --out {shlex.quote(str(self.data))}"

    def advice(self, stage: str, also: Collection[str] = ()) -> str:
        """How to come by the output of an upstream stage, or one of `also`, that is missing or not whole."""
        made = None
        with suppress(StageError):  # which whoever reads it explains
            made = read_manifest(self.input(stage))
        if made is not None and made.recipe.stage in (stage, *also):
            return self.repeat(made)
        if self.data is not None:
            return self.command(stage) + ("" if made else self._out)  # another stage's output stays there
        return f"{self.command(stage)} (or {self.command('retest_fair')} for all stages)"


@dataclass(frozen=True)
class Outcome:
    """What a stage did: the folder it wrote, whether it had to, and a line or two about it."""

    folder: Path
    up_to_date: bool = False
    lines: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def finished(folder: Path) -> Outcome:
    """The outcome of a stage that finds its output up to date; the facts are those of the manifest."""
    manifest = read_manifest(folder)
    return Outcome(folder, up_to_date=True, facts=manifest.told if manifest else {})


MakeRecipe = Callable[[Options], Recipe]
Renews = Callable[[Path, Recipe], bool]
"""Whether an output of another recipe is replaced without --force."""


def renew_nothing(folder: Path, recipe: Recipe) -> bool:
    """No output is replaced without --force, as is the rule."""
    return False


def make_once(make_recipe: MakeRecipe) -> MakeRecipe:
    """The same with its first answer kept, for it reads all inputs, and a command's options never change."""
    made: list[Recipe] = []

    def make(options: Options) -> Recipe:
        if not made:
            made.append(make_recipe(options))
        return made[0]

    return make


def is_finished(
    stage: str, options: Options, make_recipe: MakeRecipe, *, renews: Renews = renew_nothing
) -> bool:
    """Whether the stage's output is up to date. Raises StageError for one that was made otherwise."""
    target = options.output(stage)
    if options.force or not (target / MANIFEST).is_file():
        return False
    recipe = make_recipe(options)
    return is_current(target, recipe, force=renews(target, recipe))


def require_usable(
    stage: str, options: Options, make_recipe: MakeRecipe, *, begun: str, renews: Renews
) -> None:
    """Raise StageError for what would stop the stage: an output of another recipe, or a process at it.

    An unfinished output of another recipe too, where the stage goes on with what it has `begun`; not one that
    it `renews` without being told.
    """
    target, recipe = options.output(stage), make_recipe(options)
    is_current(target, recipe, force=options.force or renews(target, recipe))
    refuse_busy(target, recipe, force=options.force or not begun)


def answer_to_make(stage: str, folder: Path, *, json: bool, begun: str = "") -> int:
    """Say for `--check` that an output is yet to be made, or how far it is; returns the exit code."""
    progress.say(f"{stage}: {begun or 'yet to be made'}: {folder}")
    if json:
        print(orjson.dumps({"stage": stage, "folder": str(folder), "up_to_date": False}).decode())
    return TO_MAKE


Work = Callable[[Options], Outcome]


def run_stage(
    stage: str,
    summary: str | None,
    work: Work,
    argv: Sequence[str] | None,
    *,
    make_recipe: MakeRecipe | None = None,
    recall: Work | None = None,
    sections: Sequence[str] = (),
    computes: bool = False,
    refuse: Callable[[Options], None] | None = None,
    begun: Callable[[Options], str] = lambda _: "",
    renews: Renews = renew_nothing,
) -> int:
    """Parse, run, and turn a mistake into one line; `refuse` knows options that make no sense together.

    A stage that computes says which BLAS runs. Its `work` imports MLX itself: `argv` None is the
    command that a user typed, which is then started again with a fast BLAS if need be. With
    `make_recipe` none of that is done for an output that is up to date: `recall` tells its outcome, by
    default the manifest does. `begun` says how far an unfinished output is that it would go on with, if there
    is one, `renews` whether an output of another recipe is replaced without --force.
    """

    def body() -> int:
        catch_interrupts()
        args = build_parser(stage, summary or "", sections).parse_args(argv)
        progress.talk_on_stderr(args.json)
        options = read_options(args)
        if refuse is not None:
            refuse(options)
        known = make_once(make_recipe) if make_recipe else None
        if known and is_finished(stage, options, known, renews=renews):
            return run_work(stage, recall or (lambda options: finished(options.output(stage))), options)
        if options.check:
            if known:
                require_usable(stage, options, known, begun=begun(options), renews=renews)
            return answer_to_make(stage, options.output(stage), json=options.json, begun=begun(options))
        if computes and argv is None:
            ensure_fast_blas(blas_folder())
        return run_work(stage, work, options, computes=computes)

    return guard(stage, body)


def guard(stage: str, body: Callable[[], int]) -> int:
    """Run `body` and translate the exceptions that a user can cause into lines and exit codes."""
    try:
        return body()
    except StageFailed:
        return 2
    except StageError as error:
        _complain(stage, str(error))
        return 2
    except OSError as error:
        if error.errno not in UNUSABLE_PLACE:
            raise
        # A copy that fails names its source first, which is not the place that is full.
        place = error.filename2 or error.filename or "the disk of the output"
        _complain(
            stage,
            f"cannot use {place}: {error.strerror}; check it, or choose another place "
            "(outputs go where --out or FAIR_RETEST_ARTIFACTS says)",
        )
        return 2
    except ImportError as error:
        if CUDA_DRIVER not in str(error):
            raise
        _complain(
            stage,
            f"MLX's CUDA build finds no driver here ({CUDA_DRIVER}): install NVIDIA's driver, or run without "
            "--cuda and FAIR_RETEST_MLX",
        )
        return 2
    except KeyboardInterrupt as interrupt:
        _complain(stage, str(interrupt) or INTERRUPTED)
        return INTERRUPTED_CODE


def _complain(stage: str, text: str) -> None:
    print(f"{progress.line_mark()}{stage}: {show_controls(text)}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, like that of any other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise StageError instead of printing the usage."""
        raise StageError(f"{message}; --help lists the options")


def build_parser(
    stage: str, summary: str, sections: Sequence[str] = (), *, arm: str | None = "fair"
) -> argparse.ArgumentParser:
    """The common options and one flag for every option of the named preset sections.

    `arm` is what `--fixes` is when it is not given; None where there are several, and several seeds.
    """
    parser = Parser(
        prog=f"python -m stages.{stage}",
        description=summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=ShowHelp)
    kinds = "fair, flawed, or a list such as json,tools"
    random = "decides everything that is random"
    add_common_flags(
        parser,
        model="preset, .toml file or model folder (%(default)s)",
        fixes=f"the arm: {kinds} (%(default)s)" if arm else f"one arm, instead of --arms: {kinds}",
        seed=f"{random} (%(default)s)" if arm else f"one seed, which {random}, instead of --seeds (0)",
        data="rows: a folder, a file, or ORG/NAME of the hub"
        if stage == "convert_data"
        else "input folder instead of the upstream stage's output",
        out="output folder instead of the default below artifacts/",
        force="do it again, replacing an existing output",
    )
    if arm:
        parser.add_argument(
            "--check",
            action="store_true",
            help=f"make nothing, and end with 0 where the output is up to date, with {TO_MAKE} where it is "
            "yet to be made",
        )
    parser.set_defaults(model="smol", fixes=arm, seed=0 if arm else None, check=False)
    for section in ("model", *sections):
        add_section(parser, section)
    for option in SINGLE_OPTIONS.get(stage, ()):
        add_section(parser, section_of(option), (option,))
    return parser


def add_common_flags(
    parser: argparse.ArgumentParser, *, model: str, fixes: str, seed: str, data: str, out: str, force: str
) -> None:
    """The options that every stage takes, with what they mean to it; none has a default."""
    parser.add_argument("--model", help=model)
    parser.add_argument("--fixes", help=fixes)
    parser.add_argument("--seed", type=whole_number, help=seed)
    parser.add_argument("--data", type=folder, help=data)
    parser.add_argument("--out", type=folder, help=out)
    parser.add_argument("--force", action="store_true", help=force)
    parser.add_argument(
        "--json", action="store_true", help="print the outcome as JSON on stdout, all else on stderr"
    )


def require_seed(seed: int) -> None:
    """Raise StageError for a seed that is negative or too large."""
    if not 0 <= seed < SEED_LIMIT:
        raise StageError(f"--seed {seed}: use 0 or a positive number" + " below 2**63" * (seed > 0))


def read_options(args: argparse.Namespace) -> Options:
    """The resolved options. Raises StageError for an unknown preset, fix or unusable value."""
    known = {name for setup in SECTIONS.values() for name in setup.model_fields}
    overrides = {k: v for k, v in vars(args).items() if k in known and v is not None}
    seed = args.seed or 0
    require_seed(seed)
    return Options(
        preset=load_preset(args.model, overrides),
        fixes=parse_fixes("fair" if args.fixes is None else args.fixes),
        seed=seed,
        data=args.data,
        out=args.out,
        force=args.force,
        json=args.json,
        check=args.check,
        overrides=overrides,
        model=args.model,
        rows={
            name: value
            for name in ROW_FLAGS
            if (value := getattr(args, name, None)) is not None and value is not False
        },
    )


def run_work(stage: str, work: Work, options: Options, *, computes: bool = False) -> int:
    """Run a stage's work with resolved options, and say and log what it does."""
    started = time.perf_counter()
    progress.say(f"{stage}: {options.preset.name}, arm {options.arm}, seed {options.seed}")
    if computes:
        progress.say(f"  {describe_blas()}")
    with progress.run_log(
        stage, artifacts_root() / "logs", model=options.preset.name, arm=options.arm
    ) as log:
        outcome = work(options)
        log["up_to_date"] = outcome.up_to_date
    seconds = time.perf_counter() - started
    for line in outcome.lines:
        progress.say(f"  {line}")
    state = "up to date" if outcome.up_to_date else "done"
    progress.say(f"{stage}: {state} in {seconds:.1f} s: {outcome.folder}")
    if options.json:
        answer = {
            "stage": stage,
            "folder": str(outcome.folder),
            "up_to_date": outcome.up_to_date,
            "seconds": round(seconds, 3),
            **outcome.facts,
        }
        print(orjson.dumps(answer, default=str).decode())
    return 0
