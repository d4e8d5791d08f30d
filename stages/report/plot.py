"""The losses of all trainings as a picture: SVG whose bytes depend on the logs alone.

matplotlib is imported when there is something to draw: it takes longer than all the rest of a report.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.core.records import LossPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"loss": "every supervised token", "call_loss": "tokens of calls alone"}  # by field of a point
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
SIZE = (9.6, 3.8)  # inches of 72 points
MARGINS = {"left": 0.06, "right": 0.99, "bottom": 0.13, "top": 0.92, "wspace": 0.04}  # of its size
# Text stays text, ids come from the content, and nothing names the day or the version.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fair-retest",
    "font.size": 9.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
METADATA = {"Date": None, "Creator": None, "Title": "Losses of training and validation by step"}


def draw_losses(runs: Mapping[str, Sequence[LossPoint]]) -> str:
    """The losses in nats per token over the steps as SVG, one colour per run, by the runs' names."""
    import matplotlib
    from matplotlib.figure import Figure

    defaults: Any = matplotlib.rcParamsDefault  # whatever the user's own settings are
    with matplotlib.rc_context(defaults), matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(**MARGINS)
        axes: Any = figure.subplots(1, len(PANELS), sharey=True)
        for panel, (field, title) in zip(axes, PANELS.items(), strict=True):
            for number, points in enumerate(runs.values()):
                _draw_run(panel, points, field, number)
            panel.set(title=title, xlabel="step", ylim=(0, None))
        axes[0].set_ylabel("nats per token")
        _add_legend(axes[-1], [*runs])
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=METADATA)
    return text.getvalue()


def _draw_run(panel: Axes, points: Sequence[LossPoint], field: str, number: int) -> None:
    """A run's training as a thin line, its validations as dots on a thicker one."""
    for kind, style in (("train", {"linewidth": 0.8, "alpha": 0.7}), ("valid", {"marker": "o", "ms": 3.5})):
        found = [(p.step, getattr(p, field)) for p in points if p.kind == kind]
        steps = [step for step, value in found if value is not None]
        values = [value for _, value in found if value is not None]
        panel.plot(steps, values, color=_color(number), gid=f"{field}-{kind}-{number}", **style)


def _add_legend(panel: Axes, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=_color(number), label=name) for number, name in enumerate(names)]
    lines.append(Line2D([], [], color="gray", linewidth=0.8, label="training"))
    lines.append(Line2D([], [], color="gray", marker="o", ms=3.5, label="validation"))
    panel.legend(handles=lines, fontsize="small")


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]
