"""The commands that a report names: they say again what the runs said, and work as printed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from stages.core.artifact import MANIFEST, build_artifact
from stages.core.cli import Options, build_parser, read_options
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FLAWED
from stages.core.flags import add_row_flags, sections_taken
from stages.core.preset import SECTIONS, load_preset
from stages.core.records import AuditReport, Finding, Given, Manifest, Rate, read_record, write_record
from stages.report.arms import write_findings
from stages.report.results import find_arms
from tests.report_world import DIRECT, World, answer_right, next_commands, write_suite

ROOT = Path(__file__).resolve().parents[2]
GIVEN = {"suites": ["core20", "my suite.json"], "source": "a b", "max_tokens": 64, "iters": 30}
CRITICAL = Finding(
    check="c", severity="critical", place="data", message="m", count=1, total=1, fix="f", flaw=None
)


def read_command(command: str) -> Options:
    """The options that a printed command gives its stage, read by the stage's own parser."""
    words = shlex.split(command)
    words = words[words.index("nox") :]
    assert words[:2] == ["nox", "-s"]
    assert words[3] == "--"
    sections = [name for name in sections_taken(words[2]) if name in SECTIONS and name != "model"]
    parser = build_parser(words[2], "", sections)
    if words[2] == "retest_fair":
        add_row_flags(parser)
    parser.add_argument("--arms")
    return read_options(parser.parse_args(words[4:]))


def test_commands_name_the_model_as_it_was_given(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "my `own` $(models)"
    folder.mkdir()
    preset = folder / "tiny.toml"
    preset.write_bytes((ROOT / "stages/core/presets/smol.toml").read_bytes())
    given = f"--model {shlex.quote(str(preset))}"
    assert shlex.split(given) == ["--model", str(preset)]

    def complaint() -> str:
        with pytest.raises(StageError) as raised:
            world.write(model=str(preset))
        return str(raised.value)

    assert complaint() == (
        f"no evaluation of tiny, arm fair: run nox -s eval -- {given} --fixes fair "
        f"(or nox -s retest_fair -- {given} --arms fair for all stages)"
    )
    options = Options(load_preset(str(preset)), FAIR)
    made = world.evaluate(FAIR, answer_right)
    shutil.copytree(made, options.place("eval") / "core20")
    assert complaint() == f"no audit of tiny, arm fair: run nox -s audit -- {given} --fixes fair"
    report = AuditReport(model="tiny", arm="fair", checks=["c"], findings=[CRITICAL])
    with build_artifact(options.place("audit"), world.recipe("audit", options)) as build:
        write_record(build.folder / "audit.json", report)
    world.write(model=str(preset))
    page = world.page("tiny")
    assert f"run `` nox -s retest_fair -- {given} --arms fair --force ``; no number" in page
    assert f"it would come from `` nox -s train -- {given} --fixes fair ``." in page
    shutil.rmtree(options.place("audit"))
    findings = write_findings(find_arms(options.preset, str(preset)))
    assert f"not audited; run `` nox -s audit -- {given} --fixes fair ``." in findings


def test_a_reference_given_as_a_path_is_named_by_it(two_arms: World, tmp_path: Path) -> None:
    large = tmp_path / "large one.toml"
    large.write_bytes((ROOT / "stages/core/presets/30b.toml").read_bytes())
    two_arms.evaluate(FAIR, answer_right, suite="extended")
    two_arms.write(reference=str(large))
    command = f"nox -s retest_fair -- --model {shlex.quote(str(large))}"
    assert f"`{command}`, then `nox -s report -- --model smol --reference '{large}'" in two_arms.page()


def test_a_repeated_retest_makes_the_same_rows(world: World) -> None:
    rows = {"valid_share": 0.1, "tools": "my tools.json", "dedup": True}
    world.convert(FLAWED, "rows", Given(model="smol", data="my rows", options={}, rows=rows))
    world.evaluate(FLAWED, answer_right)
    world.audit(FLAWED, [CRITICAL])
    world.write(fixes="flawed")
    (command,) = next_commands(world.page())
    assert read_command(command).rows == rows


def test_commands_say_again_what_the_runs_said(world: World) -> None:
    given = Given(model="smol", data="my rows", options=GIVEN)
    world.convert(FAIR, "rows", given)
    world.evaluate(FAIR, lambda _: DIRECT, given=given, runaway=Rate(k=20, n=20))
    with pytest.raises(StageError, match="no audit of smol, arm fair: run ") as raised:
        world.write()
    audit = read_command(str(raised.value).partition(": run ")[2])
    wanted = {name: tuple(v) if isinstance(v, list) else v for name, v in GIVEN.items()}
    assert (audit.overrides, audit.fixes, audit.data) == (wanted, FAIR, None)
    world.audit(FAIR)
    world.write(reference="14b")
    (again,) = next_commands(world.page())
    assert again.endswith(" --force")
    assert " --arms fair " in again
    repeated = read_command(again)
    assert repeated.overrides == wanted | {"reference": "14b"}
    assert (repeated.data, repeated.force, repeated.out) == (Path("my rows"), True, None)
    train = re.search("it would come from `(.*)`", world.page())
    assert train is not None
    assert read_command(train[1]).overrides == {"source": "a b", "iters": 30}
    with pytest.raises(StageError, match="no evaluation of smol, arm flawed: run ") as raised:
        world.write(fixes="flawed")
    whole = str(raised.value).partition(" (or ")[2].removesuffix(" for all stages)")
    assert read_command(whole).overrides == wanted
    assert " --arms flawed --data 'my rows' " in whole


def test_the_newest_word_counts_and_all_suites_do(world: World) -> None:
    for suite, options in (
        ("core20", {"suites": ["core20"], "max_tokens": 9}),
        ("extended", {"suites": ["extended", "own.json"]}),
    ):
        folder = world.evaluate(
            FAIR, lambda _: DIRECT, suite=suite, given=Given(model="smol", data="not rows", options=options)
        )
        made = read_record(folder / MANIFEST, Manifest)
        year = {"core20": "1999", "extended": "1998"}[suite]
        write_record(folder / MANIFEST, made.model_copy(update={"created": f"{year}-01-01T00:00:00+00:00"}))
    (arm,) = find_arms(load_preset("smol"))
    assert arm.options.overrides == {"max_tokens": 9, "suites": ("core20", "extended", "own.json")}
    assert arm.options.data is None, "the replies' model, not the rows"


def test_commands_find_the_outputs_where_they_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place = world.artifacts.parent / "my place"
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(place))
    world.evaluate(FAIR, answer_right, suite_version=7)
    world.audit(FAIR)
    for out in (world.reports, place / "reports"):
        world.reports = out
        world.write()
        measure, renew = next_commands(world.page())
        prefix = f"FAIR_RETEST_ARTIFACTS={shlex.quote(str(place))} "
        assert renew == f"{prefix}nox -s report -- --model smol --out {shlex.quote(str(out))}"
        if out == place / "reports":  # as retest_fair --out has it
            assert measure == f"nox -s retest_fair -- --model 30b --out {shlex.quote(str(place))}"
        else:
            assert measure == f"{prefix}nox -s retest_fair -- --model 30b"
        assert read_command(measure).out == (place if out == place / "reports" else None)
        assert f"from `{prefix}nox -s train -- --model smol --fixes fair`" in world.page()


def test_the_reference_is_asked_what_the_candidate_was(world: World, tmp_path: Path) -> None:
    own = write_suite(tmp_path / "own.json", name="own")
    given = Given(model="smol", data="my rows", options={"suites": [own], "iters": 3})
    world.convert(FAIR, "rows", given)
    world.evaluate(FAIR, answer_right, suite=own, given=given)
    world.audit(FAIR)
    world.write()
    measure, renew = next_commands(world.page())
    assert measure == f"nox -s retest_fair -- --model 30b --data 'my rows' --suites={own}"
    assert renew.startswith("nox -s report -- --model smol")
    # Once it is trained, it is only asked: the audit of its training knows other suites.
    world.evaluate(FAIR, answer_right, model="30b")
    world.write()
    measure = next_commands(world.page())[0]
    assert measure == f"nox -s eval -- --model 30b --fixes fair --suites={own}"
    world.evaluate(FAIR, answer_right, model="30b", suite=own, suite_version=7)
    world.write()
    assert next_commands(world.page())[0] == f"{measure} --force"
    world.evaluate(FAIR, answer_right, model="30b", suite=own)
    assert world.write()["smol"].reference_source == "measured"
