"""What training does where MLX computes on a GPU: packed weights, 16 bits, MLX's own functions.

The processor of this machine computes them here, as slowly as MLX does on it.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.nn.layers.quantized import QuantizedLinear
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten

from stages.core.compute import head_cross_entropy, score_targets
from stages.core.preset import TrainSetup, load_preset
from stages.core.render import Encoded, find_turns
from stages.core.tokenizer import load_tokenizer
from stages.train.adapter import load_trainable
from stages.train.loop import Run
from stages.train.loss import weighted_loss
from stages.train.memory import CACHE_LIMIT, estimate_gb
from stages.train.prefixes import group_rows
from stages.train.rows import load_rows, make_batch
from tests.models import BuiltOnce, Kind
from tests.pipeline import Pipeline, stock_functions
from tests.training import make_setup


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in ("core.compute", "train.adapter", "train.memory"):
        monkeypatch.setattr(f"stages.{module}.accelerator", lambda: "metal")
    with stock_functions():
        yield


def flatten(tree: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    flat: Any = tree_flatten(tree)
    return np.concatenate([np.array(array.astype(mx.float32)).reshape(-1) for _, array in flat])


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_packed_model_learns_with_the_loss_and_gradient_of_whole_rows(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    folder = built.model("llama")
    tokenizer = load_tokenizer(folder, load_preset("smol").model)
    data = qwen2_run.folder("convert_data")
    every = load_rows(data, "train", tokenizer, find_turns(tokenizer), 1024)
    rows = sorted(every, key=lambda row: sum(row.supervised))[:2]  # MLX takes long for packed logits here
    mx.random.seed(0)
    setup = make_setup(num_layers=1, batch_size=2, learning_rate=1e-2)
    model = load_trainable(folder, setup)
    assert type(model.layers[-1].mlp.up_proj.linear) is QuantizedLinear
    run = Run(model, setup, 0, rows, [], tmp_path)
    assert run.split.dtype == mx.bfloat16
    run.verify()
    first, second = (run.step(index)[0].mean for index in range(2))
    assert second < first, "and the adapter is no longer zero"

    (trunk,) = run.trunks
    batch, whole = make_batch(rows, trunk.size), make_batch(rows, 0)
    compute = value_and_grad(model, partial(weighted_loss, run.split))
    alone = flatten(compute(None, run.split.trunk(mx.array(whole.inputs), None), whole)[1])
    shared = flatten(compute(trunk.prefix, trunk.hidden(rows, mx.array(batch.inputs)), batch)[1])
    assert np.linalg.norm(alone) > 1e-2
    assert np.linalg.norm(shared - alone) < 0.05 * np.linalg.norm(alone), "rounded to 16 bits on the way"


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_loss_behind_a_head_in_16_bits() -> None:
    states = mx.random.normal((5, 64), key=mx.random.key(0)).astype(mx.bfloat16)
    head = QuantizedLinear(64, 128, bias=False, group_size=64, bits=4)
    targets = mx.array([3, 1, 4, 1, 5])
    logits = np.array(head(states).astype(mx.float32))
    shifted = logits - logits.max(axis=-1, keepdims=True)
    expected = np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(5), np.array(targets)]
    losses, right = score_targets(states, head, targets)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert np.array(head_cross_entropy(states, head, targets)) == pytest.approx(expected, rel=1e-5)
    assert right.tolist() == (logits.argmax(axis=-1) == np.array(targets)).tolist()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_scores_of_long_rows_are_in_the_estimate_of_memory(
    checkpoint: bool, built: BuiltOnce, tmp_path: Path
) -> None:
    """MLX keeps a number for every pair of positions and head: of long rows that is most of it."""
    length = 600
    tokens = np.random.default_rng(0).integers(10, 40000, (3, length)).tolist()
    learned = [False] * (length - 4) + [True] * 4
    rows = [Encoded(one, learned, [-1] * length) for one in tokens]
    setup = make_setup(num_layers=2, batch_size=2, grad_checkpoint=checkpoint, max_seq_length=2048)
    model = load_trainable(built.model("llama"), setup)
    run = Run(model, setup, 0, rows[:2], rows[2:], tmp_path)
    estimate = estimate_gb(model, setup, group_rows(rows[:2], 2), checkpoint=checkpoint)
    gc.collect()  # what earlier tests left would go at any moment
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run.step(0)
    measured = (mx.get_peak_memory() - before) / 1e9
    scores = 2 * 4 * length**2 * 2 / 1e9  # of two rows and four heads, in two bytes
    assert measured > 2 * scores
    assert 0.8 * measured < estimate < 1.6 * measured


def make_long_rows(length: int, prefix: int, count: int = 3) -> list[Encoded]:
    """Rows that begin with the same `prefix` tokens, of which the last four are learned."""
    generator = np.random.default_rng(0)
    start = generator.integers(10, 40000, prefix).tolist()
    tokens = [start + generator.integers(10, 40000, length - prefix).tolist() for _ in range(count)]
    learned = [False] * (length - 4) + [True] * 4
    return [Encoded(one, learned, [-1] * length) for one in tokens]


def measure_step(
    folder: Path, setup: TrainSetup, rows: list[Encoded], place: Path
) -> tuple[float, float, float]:
    """GB that a processor's step takes in MLX's arrays and in NumPy's, and the estimate of both."""
    mx.random.seed(0)
    model = load_trainable(folder, setup)
    gc.collect()  # what earlier tests left would go at any moment
    before = mx.get_active_memory()
    estimate = estimate_gb(model, setup, group_rows(rows[:-1], 2), checkpoint=setup.grad_checkpoint)
    run = Run(model, setup, 0, rows[:-1], rows[-1:], place)
    run.step(0)  # AdamW's state and what the frozen layers give are there from now on
    mx.reset_peak_memory()
    tracemalloc.start()
    run.step(1)
    own = tracemalloc.get_traced_memory()[1] / 1e9
    tracemalloc.stop()
    return (mx.get_peak_memory() - before) / 1e9, own, estimate - CACHE_LIMIT / 1e9


@pytest.mark.parametrize("prefix", [0, 700])
def test_the_scores_that_a_processor_works_on_are_in_the_estimate_of_memory(
    prefix: int, built: BuiltOnce, tmp_path: Path
) -> None:
    """NumPy has those of a row in each thread: of long rows that is a large part of all there is."""
    setup = make_setup(num_layers=2, batch_size=2, max_seq_length=2048)
    rows = make_long_rows(1400, prefix)
    arrays, scores, estimate = measure_step(built.model("llama"), setup, rows, tmp_path)
    assert scores > 0.4 * (arrays + scores)
    assert 0.8 * (arrays + scores) < estimate < 1.6 * (arrays + scores)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"dropout": 0.1}),
        ("llama", {"fine_tune_type": "dora"}),
        ("llama", {"fine_tune_type": "full"}),
        ("llama", {"grad_checkpoint": True}),
        ("qwen3_moe", {}),
    ],
    ids=str,
)
def test_every_way_to_train_has_its_estimate_of_memory(
    kind: Kind, options: dict[str, Any], built: BuiltOnce, tmp_path: Path
) -> None:
    setup = make_setup(num_layers=2, batch_size=8, **options)
    folder, rows = built.model(kind, quantize=kind == "llama"), make_long_rows(260, 60, 9)
    arrays, scores, estimate = measure_step(folder, setup, rows, tmp_path)
    assert 0.8 * (arrays + scores) < estimate < 1.6 * (arrays + scores)


def test_layers_that_are_computed_again_take_less_memory(built: BuiltOnce, tmp_path: Path) -> None:
    """On a processor too, where NumPy has MLX compute at once what it would else put off, and then keep."""
    rows, taken = make_long_rows(260, 60, 9), []
    for checkpoint in (False, True):
        setup = make_setup(num_layers=2, batch_size=8, grad_checkpoint=checkpoint)
        taken.append(measure_step(built.model("llama"), setup, rows, tmp_path)[0])
    assert taken[1] < 0.7 * taken[0]
