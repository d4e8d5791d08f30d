"""Artifacts: whole or absent, whatever kills the process, and never silently another's."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.artifact import (
    MANIFEST,
    NOT_HERE,
    PACKAGES,
    SAMPLE,
    STRIDE,
    build_artifact,
    fingerprint_folder,
    fingerprint_json,
    fingerprint_model,
    flatten_json,
    git_commit,
    is_current,
    package_versions,
    read_manifest,
    refuse_busy,
    require_artifact,
)
from stages.core.errors import StageError
from stages.core.records import Manifest, Recipe, read_record, write_record
from tests.waiting import HANGS, finish

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(stage="train", settings={"iters": 3, "model": {"system": "s"}}, inputs={"data": "abc"})
OTHER = Recipe(stage="train", settings={"iters": 4, "model": {"system": "s"}}, inputs={"data": "abc"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
# Builds the artifact argv[1], says so, and waits to be killed or told to go on.
BUILDER = """
import sys
from pathlib import Path
from stages.core.artifact import build_artifact
from stages.core.records import Recipe
recipe = Recipe(stage="train", settings={"iters": 3, "model": {"system": "s"}}, inputs={"data": "abc"})
with build_artifact(Path(sys.argv[1]), recipe, resume=sys.argv[2] == "resume") as build:
    (build.folder / "half.txt").write_text("half")
    print("building", flush=True)
    sys.stdin.readline()
    (build.folder / "whole.txt").write_text("whole")
"""
# Builds the artifact argv[1] ten times over, and counts how often another process was doing it.
RIVAL = """
import sys
from pathlib import Path
from stages.core.artifact import build_artifact
from stages.core.errors import StageError
from stages.core.records import Recipe
recipe, refused = Recipe(stage="train", settings={}, inputs={}), 0
for turn in range(10):
    try:
        with build_artifact(Path(sys.argv[1]), recipe) as build:
            for part in range(5):
                (build.folder / f"{part}.txt").write_text(f"{sys.argv[2]} {turn}")
    except StageError:
        refused += 1
print(refused)
"""


def make(folder: Path, recipe: Recipe = RECIPE, *, resume: bool = False, **files: str) -> Manifest:
    with build_artifact(folder, recipe, resume=resume) as build:
        for name, text in files.items():
            (build.folder / f"{name}.txt").write_text(text)
        build.facts["rows"] = 7
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def start_builder(folder: Path, mode: str = "plain") -> subprocess.Popen[str]:
    """A process that is in the middle of building."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder), mode],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_artifact_knows_what_it_was_made_of(tmp_path: Path) -> None:
    manifest = make(tmp_path / "deep" / "out", a="text")
    assert manifest.recipe == RECIPE
    assert manifest.facts == {"rows": 7}
    assert manifest.content == fingerprint_folder(tmp_path / "deep" / "out")
    assert 0 <= manifest.seconds < 3600
    assert 0.01 < manifest.peak_memory_gb < 20
    assert manifest.packages == package_versions()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest.created)
    assert names(tmp_path / "deep" / "out") == ["a.txt", MANIFEST]
    assert names(tmp_path / "deep") == ["out"], "nothing is left beside it"


def test_a_file_that_is_gone_is_seen_and_one_that_was_edited_is_not_minded(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with build_artifact(folder, RECIPE, records=("log.txt", "old")) as build:
        (build.folder / "rendered").mkdir()
        (build.folder / "old").mkdir()
        for name in ("a.txt", "log.txt", "rendered/a.txt", "old/b.txt", ".hidden"):
            (build.folder / name).write_text(name)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.files == ("a.txt", "rendered/a.txt")
    (folder / "a.txt").write_text("edited")
    (folder / "log.txt").unlink()
    (folder / "old" / "b.txt").unlink()
    assert is_current(folder, RECIPE, force=False)
    (folder / "rendered" / "a.txt").unlink()
    with pytest.raises(
        StageError, match=r"out lacks rendered/a\.txt: put it back, or .* again with --force$"
    ):
        is_current(folder, RECIPE, force=False)
    with pytest.raises(
        StageError, match=r"out lacks rendered/a\.txt: make it again with nox -s train --force$"
    ):
        require_artifact(folder, "train", "nox -s train (or nox -s retest_fair for all stages)")
    assert not is_current(folder, RECIPE, force=True)
    assert require_artifact(folder, "train", "nox -s train", whole=False) == manifest
    with pytest.raises(StageError, match="was made with iters=3"):
        is_current(folder, OTHER, force=False)


def test_a_manifest_without_the_names_of_its_files_is_read(tmp_path: Path) -> None:
    manifest = make(tmp_path / "out", a="text")
    older = manifest.model_dump(mode="json", exclude={"files"})
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(older))
    (tmp_path / "out" / "a.txt").unlink()
    assert is_current(tmp_path / "out", RECIPE, force=False)
    assert require_artifact(tmp_path / "out", "train", "").files == ()


def test_seed_template_and_stop_ids_go_along_the_chain(tmp_path: Path) -> None:
    """A model is told by them; what was written before they had fields of their own is read all the same."""
    with build_artifact(tmp_path / "train", RECIPE) as build:
        build.seed, build.template, build.stop_ids = 3, "0123456789abcdef", [2]
    trained = require_artifact(tmp_path / "train", "train", "")
    with build_artifact(tmp_path / "fuse", RECIPE) as build:
        build.inherit(trained)
        build.stop_ids = [2, 0]
    fused = require_artifact(tmp_path / "fuse", "train", "")
    assert (fused.seed, fused.template, fused.stop_ids) == (3, "0123456789abcdef", [2, 0])
    older = trained.model_dump(mode="json", exclude={"seed", "template", "stop_ids"})
    older["facts"] = {"rows": 7, "template": "0123456789abcdef", "stop_ids": [2]}
    (tmp_path / "train" / MANIFEST).write_text(json.dumps(older))
    read = require_artifact(tmp_path / "train", "train", "")
    assert (read.template, read.stop_ids, read.facts) == ("0123456789abcdef", [2], {"rows": 7})
    assert is_current(tmp_path / "train", RECIPE, force=False)
    assert read.told == older["facts"]


def test_a_folder_of_several_outputs_is_told_from_one(tmp_path: Path) -> None:
    """As `train --seeds 0,1 --out sd` makes, given to the next stage as a whole."""
    for name in ("seed0", "seed1"):
        make(tmp_path / "sd" / name)
    (tmp_path / "sd" / "own").mkdir()
    (tmp_path / "sd" / "own" / MANIFEST).write_text("[]")
    place = re.escape(str(tmp_path / "sd"))
    with pytest.raises(
        StageError, match=rf"^{place} holds 2 outputs of train: give {place}/seed0 or {place}/seed1$"
    ):
        require_artifact(tmp_path / "sd", "train", "nox -s train")
    with pytest.raises(StageError, match="holds files that are not an output of fuse"):
        require_artifact(tmp_path / "sd", "fuse", "nox -s fuse")
    with pytest.raises(StageError, match=r"nowhere, which does not exist: run nox -s fuse$"):
        require_artifact(tmp_path / "nowhere", "fuse", "nox -s fuse")


def test_every_package_that_decides_a_result_is_in_a_group_of_a_stage() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    own = [need for name in ("core", "mlx", "convert_data", "eval") for need in groups[name]]
    named = {re.split(r"[\[<>=;]", need)[0] for need in own if isinstance(need, str)}
    by_others = {"mlx", "numpy", "tokenizers", "jinja2"}  # what mlx-lm and transformers bring
    assert set(PACKAGES) <= named | by_others


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        make(tmp_path / "out", a="written", b="\ud800")
    assert names(tmp_path) == []


def test_an_error_leaves_the_earlier_artifact_alone(tmp_path: Path) -> None:
    before = make(tmp_path / "out", a="old")
    with pytest.raises(KeyboardInterrupt), build_artifact(tmp_path / "out", OTHER):
        raise KeyboardInterrupt
    assert read_manifest(tmp_path / "out") == before
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_another_build_replaces_all_files(tmp_path: Path) -> None:
    make(tmp_path / "out", a="old", b="old")
    assert make(tmp_path / "out", OTHER, a="new").recipe == OTHER
    assert names(tmp_path / "out") == ["a.txt", MANIFEST]
    assert names(tmp_path) == ["out"]


def test_kill_9_in_the_middle_leaves_nothing_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill(start_builder(out))
    assert not out.exists()
    assert not is_current(out, RECIPE, force=False)
    with pytest.raises(StageError, match="run nox -s train"):
        require_artifact(out, "train", "nox -s train")
    make(out, whole="whole")
    assert names(out) == [MANIFEST, "whole.txt"], "what the killed process left is not taken over"
    assert names(tmp_path) == ["out"]


def test_the_output_of_another_stage_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "out")
    assert require_artifact(tmp_path / "out", "train", "nox -s train") == made
    assert require_artifact(tmp_path / "out", "fuse", "nox -s fuse", also=("train",)) == made
    with pytest.raises(StageError) as error:
        require_artifact(tmp_path / "out", "fuse", "nox -s fuse", also=("quantize",))
    assert str(error.value) == (
        f"{tmp_path / 'out'} is the output of train, not of fuse: name another folder, or run nox -s fuse"
    )


def test_kill_9_while_replacing_keeps_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = make(out, OTHER, a="old")
    kill(start_builder(out))
    assert read_manifest(out) == before
    assert fingerprint_folder(out) == before.content


def test_a_killed_build_is_resumed_by_the_same_recipe_alone(tmp_path: Path) -> None:
    same, different = tmp_path / "same", tmp_path / "different"
    for out in (same, different):
        kill(start_builder(out, "resume"))
    make(same, RECIPE, resume=True, more="x")
    assert (same / "half.txt").read_text() == "half"
    assert names(same) == ["half.txt", MANIFEST, "more.txt"]
    with pytest.raises(StageError, match=r"an unfinished run with iters=3 \(now 4\) is in"):
        make(different, OTHER, resume=True, more="x")
    with build_artifact(different, OTHER, resume=True, force=True) as build:
        (build.folder / "more.txt").write_text("x")
    assert names(different) == [MANIFEST, "more.txt"]


def test_a_failed_build_that_can_resume_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        make(tmp_path / "out", RECIPE, resume=True, checkpoint="3", broken="\ud800")
    assert not (tmp_path / "out").exists()
    with build_artifact(tmp_path / "out", RECIPE, resume=True) as build:
        assert (build.folder / "checkpoint.txt").read_text() == "3"


def test_a_second_process_is_refused_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start_builder(out)
    with pytest.raises(StageError, match="another process is writing") as error, build_artifact(out, RECIPE):
        pytest.fail("two processes build the same artifact")
    assert "\n" not in str(error.value)
    _, stderr = first.communicate("go on\n", timeout=HANGS)
    assert first.returncode == 0, stderr
    assert names(out) == ["half.txt", MANIFEST, "whole.txt"]
    assert names(tmp_path) == ["out"]


def test_rivals_never_mix_their_files(tmp_path: Path) -> None:
    rivals = [
        subprocess.Popen([sys.executable, "-c", RIVAL, str(tmp_path / "out"), f"rival{n}"],
                         cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for n in range(3)
    ]  # fmt: skip
    refused = []
    for rival in rivals:
        code, out_text, error = finish(rival)
        assert code == 0, error
        refused.append(int(out_text))
    assert min(refused) < 10, "none of them ever wrote"
    out = tmp_path / "out"
    finished = read_manifest(out)
    assert finished is not None
    assert finished.content == fingerprint_folder(out)
    assert len({path.read_text() for path in out.glob("*.txt")}) == 1
    assert len(list(out.glob("*.txt"))) == 5
    assert names(tmp_path) == ["out"]


def test_current_is_what_the_same_recipe_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not is_current(out, RECIPE, force=False)
    make(out)
    assert is_current(out, RECIPE, force=False)
    assert not is_current(out, RECIPE, force=True)
    assert not is_current(out, OTHER, force=True)


def test_an_input_that_is_not_here_is_as_good_as_any(tmp_path: Path) -> None:
    """As a base model that `--check` does not fetch: the rest decides."""
    out = tmp_path / "out"
    make(out)
    blind = RECIPE.model_copy(update={"inputs": RECIPE.inputs | {"data": NOT_HERE}})
    assert is_current(out, blind, force=False)
    with pytest.raises(StageError, match=r"was made with iters=3 \(now 4\): --force"):
        is_current(out, blind.model_copy(update={"settings": OTHER.settings}), force=False)
    with pytest.raises(KeyboardInterrupt), build_artifact(tmp_path / "new", RECIPE, resume=True):
        raise KeyboardInterrupt
    refuse_busy(tmp_path / "new", blind, force=False)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (OTHER, "iters=3 (now 4)"),
        (RECIPE.model_copy(update={"inputs": {"data": "xyz"}}), "other data"),
        (RECIPE.model_copy(update={"inputs": {"data": "abc", "model": "m"}}), "another model"),
        (RECIPE.model_copy(update={"settings": {"model": {"system": "s"}}}), "iters=3 (now None)"),
        (
            RECIPE.model_copy(update={"settings": {"iters": 3, "model": {"system": "t"}}}),
            "model.system=s (now t)",
        ),
        (RECIPE.model_copy(update={"schema_version": 2}), "schema_version=1 (now 2)"),
    ],
)
def test_another_recipe_is_said_and_refused(wanted: Recipe, words: str, tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(StageError) as error:
        is_current(tmp_path / "out", wanted, force=False)
    text = str(error.value)
    assert f"was made with {words}: --force replaces it" in text
    assert "\n" not in text


@pytest.mark.parametrize("force", [False, True])
def test_no_stage_replaces_the_output_of_another(force: bool, tmp_path: Path) -> None:
    """As with the same folder for --data and --out, where the rows would be gone."""
    make(tmp_path / "out")
    with pytest.raises(StageError, match=r"out is the output of train, not of fuse: name another --out"):
        is_current(tmp_path / "out", RECIPE.model_copy(update={"stage": "fuse"}), force=force)


def test_a_version_is_said_first_and_whose_it_is(tmp_path: Path) -> None:
    """No option brings an earlier version back, so an unfinished run of one can only be discarded."""
    old = Recipe(stage="train", settings={"a": 1, "b": 1, "c": 1, "version": 3}, inputs={"data": "x"})
    new = Recipe(stage="train", settings={"a": 2, "b": 2, "c": 2, "version": 4}, inputs={"data": "y"})
    words = r"another version of train \(3, now 4\), other data, a=1 \(now 2\) and 2 more differences"
    make(tmp_path / "out", old)
    with pytest.raises(StageError, match=f"was made with {words}: --force replaces it"):
        is_current(tmp_path / "out", new, force=False)
    with pytest.raises(KeyboardInterrupt), build_artifact(tmp_path / "begun", old, resume=True):
        raise KeyboardInterrupt
    with pytest.raises(
        StageError, match=rf"an unfinished run with {words} is in \S+: discard it with --force$"
    ):
        make(tmp_path / "begun", new, resume=True)


@pytest.mark.parametrize(("count", "words"), [(4, "1 more difference"), (8, "5 more differences")])
def test_many_differences_are_counted(count: int, words: str, tmp_path: Path) -> None:
    make(tmp_path / "out", Recipe(stage="s", settings={f"k{n}": n for n in range(count)}, inputs={}))
    with pytest.raises(StageError, match=rf"k0=0 \(now None\), .* and {words}: --force"):
        is_current(tmp_path / "out", Recipe(stage="s", settings={}, inputs={}), force=False)


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(max_size=2), JSON, max_size=3),
    st.dictionaries(st.text(max_size=2), JSON, max_size=3),
)
def test_recipes_are_told_apart_and_the_difference_is_named(
    made: dict[str, Any], wanted: dict[str, Any]
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        recipe = Recipe(stage="s", settings=made, inputs={})
        told: dict[str, Any] = dict.fromkeys(("content", "created", "platform", "commit"), "")
        counted = {"seconds": 0.0, "peak_memory_gb": 0.0, "packages": {}, "facts": {}}
        write_record(folder / MANIFEST, Manifest(recipe=recipe, **told, **counted))
        assert is_current(folder, Recipe(stage="s", settings=made, inputs={}), force=False)
        if made != wanted:
            with pytest.raises(StageError, match=r"(?s)was made with .*[^ ]: --force"):
                is_current(folder, Recipe(stage="s", settings=wanted, inputs={}), force=False)


def test_a_folder_of_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert not is_current(tmp_path / "mine", RECIPE, force=False), "an empty folder will do"
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(StageError, match="holds files that are not a stage's output"):
            is_current(tmp_path / "mine", RECIPE, force=force)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_place_of_the_folder(force: bool, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(StageError, match="is a file: name a folder"):
        is_current(tmp_path / "out", RECIPE, force=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("content", ['{"name": "app", "icons": []}', "", "[]"])
def test_a_manifest_that_is_not_ours_protects_its_folder(content: str, force: bool, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text(content)
    with pytest.raises(
        StageError,
        match=r"^\S+manifest\.json is not valid[^\n]+: it is no stage's, or damaged: name",
    ):
        is_current(tmp_path / "out", RECIPE, force=force)


def test_a_damaged_manifest_of_ours_is_replaced_by_force(tmp_path: Path) -> None:
    make(tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StageError, match=r"is not valid: [^\n]+: make \S+/out anew with --force$"):
        is_current(tmp_path / "out", RECIPE, force=False)
    assert not is_current(tmp_path / "out", RECIPE, force=True)
    make(tmp_path / "out")
    assert is_current(tmp_path / "out", RECIPE, force=False)


def test_a_damaged_unfinished_build_is_discarded_by_force(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), build_artifact(tmp_path / "out", RECIPE, resume=True):
        raise KeyboardInterrupt
    (tmp_path / ".out.partial" / "recipe.json").write_text("{")
    with pytest.raises(StageError, match=r"is not valid: [^\n]+: discard what is [^\n]+--force$"):
        make(tmp_path / "out", resume=True)
    with build_artifact(tmp_path / "out", RECIPE, resume=True, force=True):
        pass
    assert is_current(tmp_path / "out", RECIPE, force=False)


def test_a_manifest_of_another_version_says_so(tmp_path: Path) -> None:
    """Before the keys that the other version has brought with it."""
    make(tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    newer = json.loads(path.read_bytes())
    newer["recipe"]["schema_version"] = 2
    path.write_text(json.dumps(newer | {"more": 1}))
    with pytest.raises(
        StageError, match=r"not valid: version 2, and this program reads version 1: make \S+ anew"
    ):
        is_current(tmp_path / "out", RECIPE, force=False)


def test_how_it_was_made_is_no_part_of_the_content(tmp_path: Path) -> None:
    contents = []
    for seconds in ("1", "2"):
        folder = tmp_path / seconds
        with build_artifact(folder, RECIPE, records=("log.jsonl", "steps")) as build:
            (build.folder / "weights").write_text("w")
            (build.folder / "log.jsonl").write_text(seconds)
            (build.folder / "steps" / seconds).mkdir(parents=True)
            (build.folder / "steps" / seconds / "log").write_text(seconds)
        contents.append(require_artifact(folder, "train", "").content)
    assert contents[0] == contents[1]


def test_the_content_is_names_and_bytes(tmp_path: Path) -> None:
    def content(**files: str) -> str:
        return make(tmp_path / "out", RECIPE, resume=False, **files).content

    first = content(a="1", b="2")
    assert content(b="2", a="1") == first
    assert content(a="2", b="1") != first
    assert content(a="1", c="2") != first
    assert content(a="1") != first
    write_record(tmp_path / "out" / "recipe.json", OTHER)
    assert fingerprint_folder(tmp_path / "out") == content(a="1"), "bookkeeping files do not count"
    (tmp_path / "out" / ".DS_Store").write_text("a file manager's")
    (tmp_path / "out" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "out" / ".ipynb_checkpoints" / "a").write_text("a notebook's")
    assert fingerprint_folder(tmp_path / "out") == content(a="1"), "nor do hidden ones"


def write_zeros(path: Path, size: int) -> None:
    """A file of that size that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


def test_model_fingerprints(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    size = 2 * STRIDE + 10
    write_zeros(weights, size)
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint_model(tmp_path)
    for position in (0, SAMPLE - 1, STRIDE, STRIDE + SAMPLE - 1, size - 1):
        with weights.open("r+b") as file:
            file.seek(position)
            file.write(b"x")
        assert fingerprint_model(tmp_path) != first, position
        write_zeros(weights, size)
    assert fingerprint_model(tmp_path) == first
    (tmp_path / "README.md").write_text("not part of the model")
    (tmp_path / ".cache.json").write_text("nor this")
    assert fingerprint_model(tmp_path) == first
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert fingerprint_model(tmp_path) != first
    write_zeros(weights, size + 1)
    (tmp_path / "config.json").write_text("{}")
    assert fingerprint_model(tmp_path) != first


def test_a_made_model_is_known_by_what_its_manifest_says_of_its_content(tmp_path: Path) -> None:
    """A sample of the weights may miss a small change; the day on which it was made says nothing."""
    prints = []
    for content, x in ((b"1", "a"), (b"1", "b"), (b"2", "b")):
        recipe = Recipe(stage="fuse", settings={"x": x}, inputs={})
        with build_artifact(tmp_path / "out", recipe, force=True) as build:
            (build.folder / "unsampled.bin").write_bytes(content)
        prints.append(fingerprint_model(tmp_path / "out"))
    assert prints[0] == prints[1] != prints[2]


def test_json_fingerprints_ignore_the_order_of_keys() -> None:
    assert fingerprint_json({"a": 1, "b": [1, 2]}) == fingerprint_json({"b": [1, 2], "a": 1})
    assert fingerprint_json({"b": [1, 2]}) != fingerprint_json({"b": [2, 1]})


def test_flat_json() -> None:
    assert flatten_json({"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": None}) == {
        "a.b.c": 1,
        "a.d": [{"e": 2}],
        "f": None,
    }


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_commit_is_that_of_the_checkout() -> None:
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert git_commit().rstrip("+") == head.stdout[:12]


def test_records_are_read_back(tmp_path: Path) -> None:
    make(tmp_path / "out")
    assert read_record(tmp_path / "out" / MANIFEST, Manifest) == read_manifest(tmp_path / "out")
    assert read_manifest(tmp_path / "none") is None
