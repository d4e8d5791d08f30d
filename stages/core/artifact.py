"""Stage outputs that are whole or absent, and know what they were made of.

An artifact is a readable folder with a `manifest.json`. It is built in a hidden sibling, the
manifest is written last, and the folder is renamed into place: a killed stage leaves nothing
that looks finished. The recipe (stage, settings, fingerprints of the inputs) decides whether an
artifact is current; a different recipe is reported, never silently reused or overwritten.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from stages.core.errors import StageError
from stages.core.platform import peak_memory_gb
from stages.core.records import Given, Manifest, Recipe, read_record, write_record
from stages.core.words import another, name_some, plural

MANIFEST = "manifest.json"
OWN_MANIFEST = re.compile(rb'\{\s*"recipe"\s*:')
NOT_HERE = "not on this machine"  # instead of an input's fingerprint, where `--check` does not fetch it
VERSION = "version"  # the setting of a recipe that a stage raises when its work changes
_RECIPE, _ENDING = "recipe.json", "ending.json"  # of an unfinished build
PACKAGES = (
    *("mlx", "mlx-lm", "transformers", "tokenizers", "jinja2", "numpy", "scipy-openblas32"),
    *("pydantic", "pydantic-monty", "orjson", "pyarrow", "datasets"),
)
STRIDE, SAMPLE = 16 << 20, 64 << 10  # of a weight file: every so many bytes, so many are read


class Ending(BaseModel):
    """What is said of a build whose files are all written, kept until it is finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: tuple[str, ...]
    facts: dict[str, Any]


@dataclass
class Build:
    """An artifact in the making: write files into `folder`, and what to remember into the other fields.

    They are the manifest's fields of the same names.
    """

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    template: str | None = None
    stop_ids: list[int] | None = None

    def inherit(self, upstream: Manifest) -> None:
        """Take over what holds along the chain: seed, chat template and stop ids."""
        self.seed, self.template, self.stop_ids = upstream.seed, upstream.template, upstream.stop_ids

    @property
    def ending(self) -> Ending | None:
        """What an interrupted build left with `keep_ending`: only working files are still in the folder."""
        path = self.folder / _ENDING
        return read_record(path, Ending) if path.is_file() else None

    def keep_ending(self, ending: Ending) -> None:
        """Note that all files are written: from here on nothing of the work is done again."""
        write_record(self.folder / _ENDING, ending)

    def discard(self) -> None:
        """Throw away what an interrupted build would go on with."""
        _discard(self.folder)


def is_current(folder: Path, recipe: Recipe, *, force: bool) -> bool:
    """Whether the artifact exists and was made by this recipe.

    An input that is NOT_HERE is taken for the one that it was made of. Raises StageError when it was made by
    another recipe, lacks a file, or has a damaged manifest, and `force` is off, and, whatever `force` says,
    when the folder holds files that no stage wrote, or another stage's output, which may be the very input.
    """
    if folder.exists() and not folder.is_dir():
        raise StageError(f"{folder} is a file: name a folder with --out")
    _refuse_other_stage(folder, recipe.stage)
    if force and (folder / MANIFEST).is_file() and _is_ours(folder / MANIFEST):
        return False  # a damaged one too
    manifest = read_manifest(folder)  # a file of this name that is not ours is refused here
    if manifest is None and folder.exists() and any(folder.iterdir()):
        raise StageError(f"{folder} holds files that are not a stage's output: name another --out folder")
    if force or manifest is None:
        return False
    wanted = fill_in(recipe, manifest.recipe)
    if manifest.recipe == wanted:
        _refuse_gaps(folder, manifest, "put it back, or make it again with")
        return True
    raise StageError(
        f"{folder} was made with {_difference(manifest.recipe, wanted)}: "
        "--force replaces it, --out FOLDER keeps both"
    )


def _refuse_other_stage(folder: Path, stage: str) -> None:
    try:
        manifest = read_manifest(folder)
    except StageError:
        return  # a damaged one tells nothing
    if manifest is not None and manifest.recipe.stage != stage:
        raise StageError(
            f"{folder} is the output of {manifest.recipe.stage}, not of {stage}: name another --out folder"
        )


def refuse_busy(folder: Path, recipe: Recipe, *, force: bool) -> None:
    """Raise StageError now for what would stop `build_artifact`, with `resume`, after hours of preparing.

    That is another process at work on the artifact, or an unfinished one of another recipe when `force`
    is off. Nothing is created.
    """
    partial = unfinished_folder(folder)
    path = partial.with_suffix(".lock")
    if path.exists():
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StageError(f"another process is writing {folder.resolve()}: wait for it to end") from None
        lock.release()
    if not force:
        _refuse_other(partial, recipe)


def unfinished_folder(folder: Path) -> Path:
    """The hidden sibling in which an artifact is built."""
    folder = folder.resolve()
    return folder.parent / f".{folder.name}.partial"


@contextmanager
def build_artifact(
    folder: Path,
    recipe: Recipe,
    *,
    given: Given | None = None,
    resume: bool = False,
    force: bool = False,
    records: Collection[str] = (),
) -> Iterator[Build]:
    """Build an artifact and put it in place when the block ends without an exception.

    `records` are its files and folders that tell how it was made: they are no part of its content.

    With `resume` the unfinished folder of an earlier, interrupted build of the same recipe is
    handed back with its files, and an interrupted build is kept. Raises StageError when another
    process is building the same artifact, or when an unfinished one of another recipe would be lost
    and `force` is off.
    """
    folder = folder.resolve()
    partial = unfinished_folder(folder)
    own_parent = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StageError(f"another process is writing {folder}: wait for it to end") from None
    started = time.perf_counter()
    try:
        _open_partial(partial, recipe, resume=resume, force=force)
        build = Build(partial)
        yield build
        manifest = Manifest(
            recipe=recipe,
            content=fingerprint_folder(partial, records),
            files=tuple(_list_content(partial, records)),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - started, 3),
            peak_memory_gb=peak_memory_gb(),
            platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            packages=package_versions(),
            commit=git_commit(),
            facts=build.facts,
            given=given,
            seed=build.seed,
            template=build.template,
            stop_ids=build.stop_ids,
        )
        write_record(partial / MANIFEST, manifest)
        _replace(partial, folder)
        for name in (_ENDING, _RECIPE):
            (folder / name).unlink(missing_ok=True)
    except BaseException:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        # While it is held: afterwards the file may already be the next process's lock.
        (folder.parent / f".{folder.name}.lock").unlink(missing_ok=True)
        lock.release()
        if own_parent:
            with suppress(OSError):  # it holds what was built, or the beginning of it
                folder.parent.rmdir()


def _list_outputs(folder: Path, stage: str) -> list[Path]:
    """What a stage wrote into a folder of outputs, as with several seeds."""
    outputs = []
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        with suppress(StageError):  # a damaged one is none
            manifest = read_manifest(path.parent)
            outputs += [path.parent] if manifest and manifest.recipe.stage == stage else []
    return outputs


def read_manifest(folder: Path, again: str = "--force") -> Manifest | None:
    """The manifest of a finished artifact, or None when there is none; `again` makes it anew.

    Raises StageError for one that cannot be read, and for a file of this name that no stage wrote.
    """
    path = folder / MANIFEST
    try:
        return read_record(path, Manifest) if path.is_file() else None
    except StageError as error:
        remedy = (
            f"make {folder} anew with {again}"
            if _is_ours(path)
            else "it is no stage's, or damaged: name another folder, or remove this one if it is yours"
        )
        raise StageError(f"{error}: {remedy}") from None


def _is_ours(manifest: Path) -> bool:
    """Whether a manifest that cannot be read begins as those of the stages do."""
    return OWN_MANIFEST.match(manifest.read_bytes()) is not None


def require_artifact(
    folder: Path, stage: str, command: str, *, also: Collection[str] = (), whole: bool = True
) -> Manifest:
    """The manifest of an upstream output, made by `stage` or one of `also`.

    Raises StageError naming the command that makes it, when there is none, it is another stage's, or a file
    is gone; who reads the manifest alone, or looks for the files, does not need it `whole`.
    """
    manifest = read_manifest(folder, again="the command that made it and --force")
    if manifest is None and (several := _list_outputs(folder, stage)):
        named = " or ".join(map(str, several))
        raise StageError(f"{folder} holds {plural(len(several), 'output')} of {stage}: give {named}")
    if manifest is None and folder.is_dir() and any(folder.iterdir()):
        raise StageError(
            f"{folder} holds files that are not an output of {stage}: give a folder that nox -s {stage} wrote"
            + (f"; it reads rows with -- --data {folder} --out FOLDER" if stage == "convert_data" else "")
        )
    if manifest is None:
        absent = "" if folder.exists() else ", which does not exist"
        raise StageError(f"no output of {stage} in {folder}{absent}: run {command}")
    if manifest.recipe.stage not in (stage, *also):
        raise StageError(
            f"{folder} is the output of {manifest.recipe.stage}, not of {stage}: name another folder, "
            f"or run {command}"
        )
    if whole:
        _refuse_gaps(folder, manifest, f"make it again with {command.partition(' (or ')[0]}")
    return manifest


def _refuse_gaps(folder: Path, manifest: Manifest, remedy: str) -> None:
    """Raise StageError when a file is gone. Nothing is made again unasked: others may have been edited."""
    if gone := [name for name in manifest.files if not (folder / name).is_file()]:
        raise StageError(f"{folder} lacks {name_some(gone, 3)}: {remedy} --force")


def fingerprint_folder(folder: Path, records: Collection[str] = ()) -> str:
    """SHA-256 over the names and bytes of all files but the bookkeeping, the named records and hidden ones.

    What is in a hidden folder, as notebooks leave it, is hidden too. What a stage reads is known by what its
    files hold now: someone may have edited them since they were made.
    """
    kept = _list_content(folder, records)
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        for name, content in zip(kept, pool.map(hash_file, kept.values()), strict=True):
            digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def _list_content(folder: Path, records: Collection[str]) -> dict[str, Path]:
    """The files that count, by their names within the folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: path
        for name, path in named.items()
        if name.partition("/")[0] not in (MANIFEST, _RECIPE, _ENDING, *records) and "/." not in f"/{name}"
    }


def hash_file(path: Path) -> bytes:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def fingerprint_model(folder: Path) -> str:
    """A fingerprint of a model folder that does not read all of its gigabytes.

    Of a weight file its size and a sample of every 16 MiB count, of a stage's manifest the content that it
    names and not the date, every other file counts whole. Raises StageError for a damaged manifest.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        if path.suffix not in (".json", ".jinja", ".safetensors", ".txt", ".model"):
            continue
        if path.name == MANIFEST and _is_ours(path) and (made := read_manifest(folder)):
            digest.update(made.content.encode())
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                for start in range(0, size, STRIDE):
                    file.seek(start)
                    digest.update(file.read(SAMPLE))
            else:
                digest.update(file.read())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide a result, those that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str:
    """The commit of this checkout, with `+` when files differ from it, or `unknown`."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _open_partial(partial: Path, recipe: Recipe, *, resume: bool, force: bool) -> None:
    mark = partial / _RECIPE
    if resume and mark.is_file():
        begun = _read_begun(mark, force=force)
        if begun == recipe:
            return
        if begun and not force:
            raise _other_run(partial, begun, recipe)
    _discard(partial)
    partial.mkdir(parents=True)
    write_record(mark, recipe)


def _read_begun(mark: Path, *, force: bool) -> Recipe | None:
    """The recipe of an unfinished build; one that cannot be read is nothing to go on with."""
    try:
        return read_record(mark, Recipe)
    except StageError as error:
        if force:
            return None
        raise StageError(f"{error}: discard what is unfinished there with --force") from None


def _refuse_other(partial: Path, recipe: Recipe) -> None:
    mark = partial / _RECIPE
    if mark.is_file() and (begun := _read_begun(mark, force=False)):
        wanted = fill_in(recipe, begun)
        if begun != wanted:
            raise _other_run(partial, begun, wanted)


def _other_run(partial: Path, begun: Recipe, recipe: Recipe) -> StageError:
    same_version = begun.settings.get(VERSION) == recipe.settings.get(VERSION)
    remedy = "finish it with those options, or discard it" if same_version else "discard it"
    return StageError(
        f"an unfinished run with {_difference(begun, recipe)} is in {partial}: {remedy} with --force"
    )


def _discard(partial: Path) -> None:
    """Remove an unfinished folder, the recipe first: without it nothing goes on from what is left."""
    (partial / _RECIPE).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, folder: Path) -> None:
    """Rename into place; an older artifact is moved aside first and removed last."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    partial.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def fill_in(wanted: Recipe, made: Recipe) -> Recipe:
    """What is wanted, with what `made` was made of for inputs that are not here."""
    known = {name: made.inputs.get(name, NOT_HERE) for name, f in wanted.inputs.items() if f == NOT_HERE}
    return wanted.model_copy(update={"inputs": wanted.inputs | known}) if known else wanted


def _difference(made: Recipe, wanted: Recipe) -> str:
    """The first few settings or inputs in which two recipes differ, in words."""
    before, after = flatten_json(made.model_dump()), flatten_json(wanted.model_dump())
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    changed.sort(key=lambda key: (not key.endswith(VERSION), key))  # no option brings a version back
    words = []
    for key in changed[:3]:
        was, now = before.get(key), after.get(key)
        if key.startswith("inputs."):
            words.append(another(key.removeprefix("inputs.")))
        elif key == f"settings.{VERSION}" and made.stage == wanted.stage:
            words.append(f"another version of {made.stage} ({was}, now {now})")
        else:
            words.append(f"{key.removeprefix('settings.')}={was} (now {now})")
    more = f" and {plural(len(changed) - 3, 'more difference')}" if len(changed) > 3 else ""
    return (", ".join(words) + more) or "other settings"  # such as an empty table instead of none


def flatten_json(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; lists are left whole."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten_json(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def fingerprint_json(data: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(orjson.dumps(data, option=orjson.OPT_SORT_KEYS)).hexdigest()
