"""Runs of the stages on tiny models, in this process or as the command that a user types."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.convert_data.stage import CORPUS
from stages.core.cli import Options, Outcome
from stages.core.fixes import FixSet
from stages.core.preset import load_preset
from tests.models import KINDS

ROOT = Path(__file__).resolve().parents[1]
UPSTREAM = {"train": "convert_data", "fuse": "train", "quantize": "fuse", "eval": "quantize"}
TRAIN: dict[str, Any] = {
    "iters": 4, "batch_size": 2, "num_layers": 2, "learning_rate": 1e-3, "save_every": 2, "eval_every": 2,
    "rank": 4, "scale": 4.0, "max_seq_length": 1024,
}  # fmt: skip


@dataclass
class Pipeline:
    """The stages of one arm of one model, each output below `root` and made when first asked for."""

    root: Path
    model: Path
    fixes: FixSet
    data: Path
    overrides: dict[str, Any] = field(default_factory=dict)

    def options(self, stage: str, **more: Any) -> Options:
        """The options of a stage that reads its upstream's output here, which is made first."""
        preset = load_preset(str(self.model), TRAIN | self.overrides | more)
        source = self.folder(UPSTREAM[stage]) if stage in UPSTREAM else self.data
        return Options(preset, self.fixes, data=source, out=self.root / stage)

    def folder(self, stage: str) -> Path:
        """The output of a stage; what it needs is made first."""
        place = self.root / stage
        if not place.exists():
            run_work(stage, self.options(stage))
        return place


def run_work(stage: str, options: Options) -> Outcome:
    """Call the function that does a stage's work."""
    work = getattr(import_module(f"stages.{stage}.stage"), {"eval": "evaluate"}.get(stage, stage))
    outcome: Outcome = work(options)
    return outcome


def cut_corpus(folder: Path, rows: dict[str, Sequence[int]]) -> Path:
    """A data folder with some rows of the shipped corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, chosen in rows.items():
        lines = (CORPUS / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[i] for i in chosen), "utf-8")
    return folder


def start_stage(
    stage: str, arguments: Sequence[str], artifacts: Path, **environment: str
) -> subprocess.Popen[str]:
    """Start `python -m stages.STAGE` at the root of the checkout."""
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=ROOT,
        env=os.environ | {"FAIR_RETEST_ARTIFACTS": str(artifacts)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def stock_functions() -> Iterator[None]:
    """MLX's and mlx-lm's own functions for the block, whatever was put in their place."""
    from mlx.nn.layers.linear import Linear
    from mlx_lm.models.activations import swiglu
    from mlx_lm.models.base import scaled_dot_product_attention
    from mlx_lm.tuner.lora import LoRALinear

    own = {"scaled_dot_product_attention": scaled_dot_product_attention, "swiglu": swiglu}
    modules: list[Any] = [import_module(f"mlx_lm.models.{kind}") for kind in KINDS]
    before = [{name: getattr(module, name) for name in own} for module in modules]
    layers: list[Any] = [Linear, LoRALinear]
    calls = [layer.__call__ for layer in layers]
    try:
        for layer, call in zip(layers, calls, strict=True):
            layer.__call__ = getattr(call, "plain", call)
        for module in modules:
            for name, function in own.items():
                setattr(module, name, function)
        yield
    finally:
        for layer, call in zip(layers, calls, strict=True):
            layer.__call__ = call
        for module, functions in zip(modules, before, strict=True):
            for name, function in functions.items():
                setattr(module, name, function)
