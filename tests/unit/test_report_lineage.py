"""Which outputs were made from which: a stage that ran again alone stops the report."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from stages.core.artifact import MANIFEST, build_artifact
from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.fixes import FAIR, FLAWED, FixSet
from stages.core.preset import load_preset
from stages.core.records import LossPoint, Manifest, read_record, write_lines, write_record
from stages.report.lineage import MADE_FROM, SHARED
from tests.report_world import World, answer_right, table_rows

ROOT = Path(__file__).resolve().parents[2]
LATER = {
    "train": ", then fuse, quantize, eval likewise",
    "fuse": ", then quantize, eval likewise",
    "quantize": ", then eval likewise",
    "eval": "",
    "audit": "",
}


def redo(world: World, stage: str, fixes: FixSet = FAIR) -> None:
    """What `--force` of one stage alone leaves behind."""
    options = Options(load_preset("smol"), fixes)
    if stage == "convert_data":
        world.convert(fixes, "other rows")
    elif stage == "train":
        with build_artifact(options.place("train"), world.recipe("train", options)) as build:
            write_lines(build.folder / "log.jsonl", [LossPoint(step=1, kind="train", loss=1, seconds=1)])
    elif stage == "fuse":
        world.fuse(fixes, [2], "other weights")
    else:
        world.quantize(fixes, 8)


@pytest.fixture
def chain(world: World) -> World:
    """One arm with the outputs of every stage."""
    world.convert(FAIR, "rows")
    world.audit(FAIR)
    world.train(FAIR)
    world.evaluate(FAIR, answer_right)
    world.evaluate(FAIR, answer_right, suite="extended")
    return world


@pytest.mark.parametrize(
    ("again", "stale"),
    [("convert_data", "audit"), ("train", "fuse"), ("fuse", "quantize"), ("quantize", "eval")],
)
def test_a_stage_that_ran_again_alone_stops_the_report(chain: World, again: str, stale: str) -> None:
    chain.write()
    shutil.rmtree(chain.reports)
    redo(chain, again)
    with pytest.raises(StageError) as raised:
        chain.write()
    said = str(raised.value)
    assert "\n" not in said
    title = "eval core20" if stale == "eval" else stale
    assert said.startswith(f"smol, arm fair: {title} was not made from the output of {again} in ")
    assert f"run nox -s {stale} -- --model smol --fixes fair --force{LATER[stale]}; or remove " in said
    assert not chain.reports.exists()


def test_new_rows_under_an_old_training_stop_the_report(chain: World) -> None:
    redo(chain, "convert_data")
    chain.audit(FAIR)
    with pytest.raises(StageError, match="train was not made from the output of convert_data") as raised:
        chain.write()
    assert LATER["train"] in str(raised.value)


def test_following_the_advice_gives_a_report(chain: World) -> None:
    redo(chain, "quantize")
    for suite in ("core20", "extended"):
        with pytest.raises(StageError, match=f"eval {suite} was not made from the output of quantize"):
            chain.write()
        chain.evaluate(FAIR, answer_right, suite=suite)
    chain.write()
    rows = table_rows(chain.page())
    assert [row[-1] for row in rows[1:] if row[0] == "fair" and row[1] == "0"] == ["8"]


def test_a_stale_arm_can_be_taken_out(two_arms: World) -> None:
    redo(two_arms, "quantize", FLAWED)
    with pytest.raises(StageError, match="smol, arm flawed: eval core20 was not made from") as raised:
        two_arms.write()
    place = Options(load_preset("smol"), FLAWED).place("eval")
    assert f"or remove {place} to leave this arm out" in str(raised.value)
    shutil.rmtree(place)
    two_arms.write()


def test_what_is_newer_is_said(chain: World) -> None:
    place = Options(load_preset("smol"), FAIR).place("quantize")
    redo(chain, "quantize")
    made = read_record(place / MANIFEST, Manifest)
    for year, age in (("2999", "newer"), ("1999", "another one")):
        write_record(place / MANIFEST, made.model_copy(update={"created": f"{year}-01-01T00:00:00+00:00"}))
        with pytest.raises(StageError, match=rf"seed0, which is {age} \({year}-01-01"):
            chain.write()


@pytest.mark.parametrize("stage", ["convert_data", "train", "fuse", "quantize"])
def test_a_folder_that_is_gone_proves_nothing(chain: World, stage: str) -> None:
    shutil.rmtree(Options(load_preset("smol"), FAIR).place(stage))
    chain.write()


@pytest.mark.parametrize(("role", "noun"), SHARED.items())
def test_audit_and_training_share_rows_and_base(chain: World, role: str, noun: str) -> None:
    options = Options(load_preset("smol"), FAIR)
    shutil.rmtree(options.place("convert_data"))
    path = options.place("audit") / MANIFEST
    audit = read_record(path, Manifest)
    inputs = audit.recipe.inputs | {role: "0" * 64}
    recipe = audit.recipe.model_copy(update={"inputs": inputs})
    for created, older in (("1999", "audit"), ("2999", "train")):
        write_record(path, audit.model_copy(update={"recipe": recipe, "created": created}))
        told = f"had different {noun}, {older} is the older: run nox -s {older} -- --model smol"
        with pytest.raises(StageError, match=f"audit and train {told}"):
            chain.write()


def test_the_output_of_another_stage_is_said(chain: World) -> None:
    places = [Options(load_preset("smol"), FAIR).place(stage) for stage in ("train", "fuse")]
    shutil.rmtree(places[0])
    shutil.copytree(places[1], places[0])
    with pytest.raises(
        StageError, match="is the output of fuse, not of train: name another folder, or run nox"
    ):
        chain.write()


def test_audit_and_training_share_the_chat_template(chain: World) -> None:
    """An audit of before, which does not say its own, is taken as it is."""
    path = Options(load_preset("smol"), FAIR).place("audit") / MANIFEST
    audit = read_record(path, Manifest)
    write_record(path, audit.model_copy(update={"template": "0123456789abcdef"}))
    chain.write()
    write_record(path, audit.model_copy(update={"template": "f" * 16, "created": "1999"}))
    with pytest.raises(StageError, match="audit and train had different chat templates, audit is the older"):
        chain.write()


@pytest.mark.parametrize("stage", MADE_FROM)
def test_the_stages_name_their_inputs_as_the_report_reads_them(stage: str) -> None:
    modules = sorted((ROOT / "stages" / stage).glob("*.py"))
    tree = ast.Module([part for path in modules for part in ast.parse(path.read_text("utf-8")).body], [])
    recipes = [
        {ast.literal_eval(key) for key in keyword.value.keys if key is not None}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Recipe"
        for keyword in node.keywords
        if keyword.arg == "inputs" and isinstance(keyword.value, ast.Dict)
    ]
    assert len(recipes) == 1
    assert MADE_FROM[stage][0] in recipes[0]
    if stage in ("audit", "train"):
        assert SHARED.keys() <= recipes[0]
