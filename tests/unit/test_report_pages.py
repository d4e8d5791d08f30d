"""The rest of a page: arms beside each other, findings, training; nothing is said twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.core.fixes import FAIR, FLAWED
from stages.eval.score import SCORER_VERSION
from tests.report_world import DIRECT, World, answer_right, check_tables, table_rows, write_suite


def test_arms_stand_beside_each_other_with_a_paired_test(two_arms: World) -> None:
    two_arms.write()
    page = two_arms.page()
    rows = table_rows(page)
    # 13 tool queries are right in the fair arm alone: p = 2 / 2^13.
    assert ["flawed → fair", "decision", "0", "13", f"{2 / 2**13:.2g}"] in rows
    assert ["`json`", "off", "on"] in [[row[0], *row[-2:]] for row in rows]
    assert "`eos` has no effect on this model: the fused models of both arms stop at the same ids" in page
    assert "`six_bit` has no effect" not in page
    assert "`parser` has no effect" not in page


def test_arms_of_different_scorers_are_not_paired(
    two_arms: World, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(two_arms.artifacts / "smol" / "eval" / "none")
    two_arms.evaluate(FLAWED, lambda _: DIRECT, scorer_version=SCORER_VERSION + 1)
    two_arms.write()
    versions = f"scorer version {SCORER_VERSION + 1} against {SCORER_VERSION}"
    assert f"- flawed and fair are not compared: {versions}" in two_arms.page()
    assert f"  smol: on core20 flawed and fair are not compared: {versions}" in capsys.readouterr().out
    assert "exact McNemar" not in two_arms.page()


def test_stop_ids_that_differ_are_no_idle_fix(two_arms: World) -> None:
    for fixes, stops in ((FLAWED, [0]), (FAIR, [2, 0])):
        two_arms.train(fixes, stops)
        two_arms.evaluate(fixes, answer_right)
    two_arms.write()
    assert "`eos` has no effect" not in two_arms.page()


def test_findings_and_training_are_shown(two_arms: World) -> None:
    two_arms.write()
    page = two_arms.page()
    assert "- **flawed**: 1 critical, 0 warnings, 0 info, from 1 check.\n- **fair**: 0 critical," in page
    assert "419 rows with XML &#124; 62 with bare Python" in page
    assert "Validation loss 2.5000 at step 0, 0.2600 at step 240, best 0.2600 at step 240." in page
    assert "240 steps, 685 rows, 240 s, 600 tokens a second, peak 3.50 GB." in page
    assert "## Training\n\n![Losses of training and validation by step](smol-loss.svg)\n\n### flawed" in page
    picture = (two_arms.reports / "smol-loss.svg").read_text("utf-8")
    assert picture.startswith("<?xml")
    assert picture.count(">flawed</text>") == 1


def test_nothing_is_said_twice_about_one_arm_and_suite(world: World, tmp_path: Path) -> None:
    own = write_suite(tmp_path / "own.json", name="own")
    world.evaluate(FAIR, answer_right, suite=own)
    world.audit(FAIR)
    world.write()
    page = world.page()
    assert page.count("tool-or-direct accuracy") == 1
    assert page.count("No comparable result") == page.count("\nNext: ") == 1
    world.evaluate(FAIR, answer_right)
    world.write()
    assert world.page().count("tool-or-direct accuracy") == 2  # one table per suite
    parts = world.page().split("\n\n")
    paragraphs = [part for part in parts if len(part) > 60 and not part.startswith(("```", "### "))]
    assert len(paragraphs) == len(set(paragraphs))


def test_a_long_title_leaves_a_legible_heading(world: World) -> None:
    world.evaluate(FAIR, answer_right, title="A\nlong | title " * 40)
    world.audit(FAIR)
    world.write()
    heading = world.page().splitlines()[0]
    assert heading.startswith("# smol: A⏎long &#124; title A⏎long")
    assert heading.endswith("…, fair arm")
    assert len(heading) < 200
    check_tables(world.page())


def test_what_rounding_has_left_of_the_training(two_arms: World) -> None:
    two_arms.write()
    assert "## Quantization" not in two_arms.page(), "outputs of before, or without the base model"
    layers = {
        "0": {"ratio": 1.5, "kept": 0.98},
        "1": {"ratio": 1.25, "kept": 1.01},
        "2": {"ratio": 2, "kept": 0.9},
    }
    two_arms.quantize(FAIR, 6, layers)
    two_arms.quantize(FLAWED, 5, {"0": {"ratio": 0.1, "kept": 0.02}})
    two_arms.write()
    lines = two_arms.page().partition("## Quantization\n\n")[2].splitlines()
    assert lines[0].startswith(
        "- flawed: at 5 bits 2 % of the adapter's change of the weights is kept (2 % to 2 % over "
    )
    assert lines[0].endswith("its size (0.10 to 0.10). **Most of what was trained is rounded away.**")
    assert lines[1] == (
        "- fair: at 6 bits 98 % of the adapter's change of the weights is kept (90 % to 101 % over 3 "
        "layers), in 1.50 times its size (1.25 to 2.00)."
    )
