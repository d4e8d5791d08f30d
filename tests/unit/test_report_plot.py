"""The picture of the losses: what it shows, and that nothing but the logs decides its bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stages.core.records import LossPoint
from stages.report.plot import COLORS, draw_losses

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
FALLING = [
    *(LossPoint(step=s, kind="train", loss=20 / s, call_loss=10 / s, seconds=s) for s in range(10, 60, 10)),
    *(LossPoint(step=s, kind="valid", loss=3 - s / 50, call_loss=2 - s / 50, seconds=s) for s in (0, 25, 50)),
]
WITHOUT_CALLS = [LossPoint(step=s, kind="valid", loss=1.0, seconds=s) for s in (0, 50)]
DRAW = """
import sys
from stages.report.plot import draw_losses
from tests.unit.test_report_plot import FALLING, WITHOUT_CALLS
sys.stdout.write(draw_losses({"fair": FALLING, "fair, seed 1": WITHOUT_CALLS}))
"""


def heights(picture: str, name: str) -> list[float]:
    """The points of a line from left to right, as heights above the top of the picture."""
    root = ElementTree.fromstring(picture)
    (line,) = (group for group in root.iter(f"{SVG}g") if group.get("id") == name)
    path = line.find(f"{SVG}path")
    drawn = re.findall(r"[ML] ([\d.]+) ([\d.]+)", "" if path is None else path.get("d", ""))
    assert [float(x) for x, _ in drawn] == sorted(float(x) for x, _ in drawn)
    return [float(y) for _, y in drawn]


def test_every_loss_is_a_point_of_its_line() -> None:
    picture = draw_losses({"fair": FALLING, "six_bit": WITHOUT_CALLS})
    for field in ("loss", "call_loss"):
        trained, validated = (heights(picture, f"{field}-{kind}-0") for kind in ("train", "valid"))
        assert (len(trained), len(validated)) == (5, 3)
        assert trained == sorted(trained), "lower on the page is a lower loss"
        assert validated[2] - validated[1] == pytest.approx(validated[1] - validated[0], rel=1e-3)
    # Both panels have one scale: the validation starts at 3 nats on the left and at 2 on the right.
    assert heights(picture, "loss-valid-0")[0] < heights(picture, "call_loss-valid-0")[0]
    assert len(set(heights(picture, "loss-valid-1"))) == 1
    assert heights(picture, "call_loss-valid-1") == []
    texts = {text.text for text in ElementTree.fromstring(picture).iter(f"{SVG}text")}
    assert {"fair", "six_bit", "step", "nats per token", "tokens of calls alone"} <= texts
    assert COLORS[0] in picture
    assert COLORS[1] in picture


def test_the_bytes_depend_on_the_logs_alone(tmp_path: Path) -> None:
    own = draw_losses({"fair": FALLING, "fair, seed 1": WITHOUT_CALLS})
    (tmp_path / "matplotlibrc").write_text("svg.fonttype: path\nlines.linewidth: 9\nfont.size: 20\n")
    environment = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "SOURCE_DATE_EPOCH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRAW], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, own), done.stderr
    assert not re.search(r"\d{4}-\d\d-\d\d|Matplotlib v", own)
    assert draw_losses({"fair": FALLING}) != own


def test_matplotlib_is_imported_for_a_picture_alone() -> None:
    code = "import sys, stages.report.stage; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
