"""Training: what is learned, that the fast loss is the plain one, that a stopped run goes on exactly."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten

from stages.audit.rows import read_row
from stages.core import progress
from stages.core.compute import load_model
from stages.core.errors import StageError
from stages.core.preset import TrainSetup, load_preset
from stages.core.records import LossPoint, read_lines
from stages.core.render import Encoded, encode_row, find_turns, render_row
from stages.core.tokenizer import load_tokenizer, read_template
from stages.train.__main__ import main
from stages.train.adapter import load_trainable
from stages.train.checkpoint import Checkpoints, State, load_adapter
from stages.train.loop import Run
from stages.train.loss import plain_loss, weighted_loss
from stages.train.prefixes import shared_prefix
from stages.train.rows import load_rows, make_batch
from stages.train.split import SplitModel
from tests.models import KINDS, BuiltOnce, Kind
from tests.pipeline import TRAIN, Pipeline, run_work, start_stage, stock_functions
from tests.waiting import finish, wait_for

CALL = {"type": "function", "function": {"name": "execute_code", "arguments": {"code": "print(1 < 2)\n"}}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "You help."},
    {"role": "user", "content": "Is 1 less than 2? Say <|im_end|> or assistant."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "True\n"},
    {"role": "assistant", "content": "Yes, it is.\n\nReally 🙂"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "You're welcome."},
]
WRITTEN_CALL = '<tool_call>\n{"name": "execute_code", "arguments": {"code": "print(1 < 2)\\n"}}\n</tool_call>'
TURN = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)


def make_setup(**overrides: Any) -> TrainSetup:
    return load_preset("smol", TRAIN | overrides).train


def encode_pipeline_rows(run: Pipeline) -> list[Encoded]:
    preset = run.options("train").preset
    tokenizer = load_tokenizer(run.model, preset.model)
    return load_rows(run.folder("convert_data"), "train", tokenizer, find_turns(tokenizer), 1024)


def supervised_runs(row: Encoded, tokenizer: Any) -> list[str]:
    """The texts of the unbroken stretches of supervised tokens."""
    stretches: list[list[int]] = []
    for i, (token, learned) in enumerate(zip(row.tokens, row.supervised, strict=True)):
        if learned and (i == 0 or not row.supervised[i - 1]):
            stretches.append([])
        if learned:
            stretches[-1].append(token)
    return [tokenizer.decode(stretch, skip_special_tokens=False) for stretch in stretches]


# What is learned


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "smol"])
def test_every_assistant_turn_is_supervised_with_its_call_and_end_token(name: str, built: BuiltOnce) -> None:
    if name == "smol":
        tokenizer = load_tokenizer(built.model("llama"), load_preset("smol").model)
        assert tokenizer.chat_template == read_template("chatml_hermes")
    else:
        tokenizer = load_tokenizer(built.tokenizer("qwen2.5" if name == "qwen2.5" else "qwen3"))
    row = encode_row({"messages": CONVERSATION}, tokenizer, find_turns(tokenizer))
    # Qwen3's template puts an empty thought before the answer to the last question; the model says it.
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    expected = [
        f"{WRITTEN_CALL}<|im_end|>",
        "Yes, it is.\n\nReally 🙂<|im_end|>",
        f"{thought}You're welcome.<|im_end|>",
    ]
    assert supervised_runs(row, tokenizer) == expected
    assert row.tokens[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.supervised[-1]
    assert tokenizer.decode(row.tokens) == render_row({"messages": CONVERSATION}, tokenizer).rstrip("\n")


# The prompt opens a thought, which the last turn alone has in a conversation.
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
# A tool's result, and the answer to it, stand in the turn that called.
JOINED = """{% for m in messages %}{% if m.role == 'tool' %}<result>{{ m.content }}</result>{% else %}
{% if not (m.role == 'assistant' and loop.previtem.role == 'tool') %}<|im_start|>{{ m.role }}
{% endif %}{{ m.content }}{% if not m.tool_calls %}<|im_end|>{% endif %}{% endif %}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_prompt_that_opens_a_thought_hides_no_turn(built: BuiltOnce) -> None:
    tokenizer = load_tokenizer(built.tokenizer("qwen3"))
    tokenizer.chat_template = THINKING
    row = encode_row({"messages": CONVERSATION}, tokenizer, find_turns(tokenizer))
    call, answer, last = supervised_runs(row, tokenizer)
    assert call.startswith("<tool_call>")
    assert call.endswith("</tool_call><|im_end|>")
    assert answer == "Yes, it is.\n\nReally 🙂<|im_end|>"
    assert last == "</think>\n\nYou're welcome.<|im_end|>", "what the prompt gives is not learned"


@pytest.mark.parametrize(
    ("template", "question", "counts"),
    [
        (JOINED, "Is it?", "3 assistant's turns as 2"),
        (None, "<|im_start|>assistant\n", "3 assistant's turns as 4"),
    ],
)
def test_a_row_whose_turns_cannot_be_told_apart_is_refused(
    template: str | None, question: str, counts: str, built: BuiltOnce, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(built.tokenizer("qwen2.5"))
    tokenizer.chat_template = template or tokenizer.chat_template
    messages = [CONVERSATION[0], {"role": "user", "content": question}, *CONVERSATION[2:]]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": messages}) + "\n", "utf-8")
    refusal = rf"train\.jsonl:1 is refused by the chat template: it writes {counts}, since .*--chat-template$"
    with pytest.raises(StageError, match=refusal):
        load_rows(tmp_path, "train", tokenizer, find_turns(tokenizer), 1024)
    row = read_row("train", 1, {"messages": messages}, tokenizer, find_turns(tokenizer))
    assert row.refused.startswith(f"it writes {counts}"), "and the audit says so"


@pytest.mark.parametrize("place", ["words", "arguments"])
def test_a_row_whose_turn_would_end_in_the_middle_is_refused(
    place: str, built: BuiltOnce, tmp_path: Path
) -> None:
    """Half of a call and a stop behind it would be learned. In a user's words the mark does no harm."""
    code = {"code": "print(text.split('<|im_end|>'))"}
    call = CALL | {"function": {"name": "execute_code", "arguments": {"options": [code]}}}
    spoken = {"content": "It ends with <|im_end|> there."} if place == "words" else {"tool_calls": [call]}
    messages = [*CONVERSATION[:2], {"role": "assistant", "content": "", **spoken}, *CONVERSATION[3:]]
    tokenizer = load_tokenizer(built.tokenizer("qwen2.5"))
    turns = find_turns(tokenizer)
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": messages}) + "\n", "utf-8")
    refusal = r"train\.jsonl:1 is refused .*: an assistant's words or arguments hold <\|im_end\|>, with"
    with pytest.raises(StageError, match=refusal):
        load_rows(tmp_path, "train", tokenizer, turns, 1024)
    row = read_row("train", 1, {"messages": messages}, tokenizer, turns)
    assert row.refused.startswith("an assistant's words or arguments hold <|im_end|>"), (
        "and the audit says so"
    )


def test_text_rows_of_the_flawed_arm_are_supervised_as_they_are(
    corpus_part: Path, qwen2_run: Pipeline
) -> None:
    tokenizer = load_tokenizer(qwen2_run.model)
    rows = [json.loads(line) for line in (corpus_part / "train.jsonl").read_text("utf-8").splitlines()]
    turns = find_turns(tokenizer)
    counts = set()
    for row in rows:
        expected = TURN.findall(row["text"])
        assert supervised_runs(encode_row(row, tokenizer, turns), tokenizer) == expected
        counts.add(len(expected))
    assert counts == {1, 2}
    assert sum("<function=" in row["text"] for row in rows) >= 3


def test_converted_rows_are_supervised_turn_by_turn(qwen2_run: Pipeline) -> None:
    tokenizer = load_tokenizer(qwen2_run.model)
    turns = find_turns(tokenizer)
    lines = (qwen2_run.folder("convert_data") / "train.jsonl").read_text("utf-8").splitlines()
    for line in lines:
        text = render_row(json.loads(line), tokenizer)
        encoded = encode_row(json.loads(line), tokenizer, turns)
        assert supervised_runs(encoded, tokenizer) == TURN.findall(text)
    assert sum(line.count('"tool_calls"') for line in lines) >= 6


def test_batches_hold_every_supervised_token_once(qwen2_run: Pipeline) -> None:
    rows = encode_pipeline_rows(qwen2_run)
    size = len(shared_prefix(rows))
    assert size > 10
    assert all(row.tokens[:size] == rows[0].tokens[:size] for row in rows)
    batch = make_batch(rows[:3], size)
    learned = [t for row in rows[:3] for t, s in zip(row.tokens, row.supervised, strict=True) if s]
    assert batch.targets.tolist() == learned
    assert batch.tokens == sum(len(row.tokens) for row in rows[:3])
    # The token before each supervised one is the input from which it is predicted.
    before = [t for row in rows[:3] for t, s in zip(row.tokens, row.supervised[1:], strict=False) if s]
    assert batch.inputs.reshape(-1)[batch.where].tolist() == before


# The fast loss


def prepare_run(kind: Kind, layers: int, built: BuiltOnce, qwen2_run: Pipeline, folder: Path) -> Run:
    """A run over converted rows whose adapter is no longer zero, so that all of it has a gradient."""
    model_folder = built.model(kind, quantize=kind != "qwen3_moe")
    preset = load_preset("smol" if kind == "llama" else str(model_folder))
    tokenizer = load_tokenizer(model_folder, preset.model)
    data = qwen2_run.folder("convert_data")
    rows = load_rows(data, "train", tokenizer, find_turns(tokenizer), 1024)
    mx.random.seed(1)
    setup = make_setup(num_layers=layers, batch_size=3)
    model = load_trainable(model_folder, setup)
    fresh = dict(tree_flatten(model.trainable_parameters()))
    noise = {name: 0.1 * mx.random.normal(array.shape) for name, array in fresh.items()}
    model.load_weights(list(noise.items()), strict=False)
    return Run(model, setup, 0, rows, rows[:1], folder)


def whole_loss(model: Any, rows: Sequence[Encoded]) -> mx.array:
    """The summed loss row by row through the whole model, with mlx-lm's and MLX's own functions."""
    total = mx.array(0.0)
    for row in rows:
        logits = model(mx.array([row.tokens[:-1]]))[0]
        losses = nn.losses.cross_entropy(logits, mx.array(row.tokens[1:]))
        total = total + (losses * mx.array(row.supervised[1:])).sum()
    return total


@pytest.mark.parametrize("layers", [1, 2], ids=["frozen layer below", "all layers trained"])
@pytest.mark.parametrize("kind", KINDS)
def test_fast_loss_and_gradient_are_the_plain_ones(
    kind: Kind, layers: int, built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    run = prepare_run(kind, layers, built, qwen2_run, tmp_path)
    by_length = {len(row.tokens): row for row in run.train}
    rows = [by_length[length] for length in sorted(by_length)[:2]]
    (trunk,) = run.trunks
    assert trunk.size > 5
    with stock_functions():
        plain, plain_gradient = value_and_grad(run.model, whole_loss)(run.model, rows)
        mx.eval(plain, plain_gradient)
    batch = make_batch(rows, trunk.size)
    for checkpoint in (False, True):  # the second time also from the hidden states that were kept
        hidden = trunk.hidden(rows, mx.array(batch.inputs))
        split = SplitModel(run.model, layers, checkpoint=checkpoint)
        compute = value_and_grad(run.model, partial(weighted_loss, split))
        (fast, _), gradient = compute(trunk.prefix, hidden, batch)
        mx.eval(fast, gradient)
        assert fast.item() == pytest.approx(plain.item(), rel=1e-5)
        expected, found = dict(tree_flatten(plain_gradient)), dict(tree_flatten(gradient))
        assert expected.keys() == found.keys()
        assert len(expected) == layers * {"qwen2": 14, "qwen3_moe": 16, "llama": 14}[kind]
        for name, value in expected.items():
            largest = float(mx.abs(value).max())
            assert largest > 1e-4, name
            assert float(mx.abs(value - found[name]).max()) < 1e-4 * largest, name
    assert plain_loss(run.model, rows) == pytest.approx(plain.item(), rel=1e-5)
    with stock_functions():  # as on a GPU: the prefix lies under each row
        split = SplitModel(run.model, layers)
        fast, _ = weighted_loss(split, trunk.prefix, hidden, batch)
        assert fast.item() == pytest.approx(plain.item(), rel=1e-5)


def test_kept_states_serve_rows_in_another_batch(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    (trunk,) = run.trunks
    first, second, third = run.train[0], run.train[4], run.train[1]
    for rows in ([first, second], [third, first], [second, third], [first, second, third]):
        batch = make_batch(rows, trunk.size)
        hidden = trunk.hidden(rows, mx.array(batch.inputs))
        fast = weighted_loss(run.split, trunk.prefix, hidden, batch)[0].item()
        assert fast == pytest.approx(plain_loss(run.model, rows), rel=1e-5)


def cut_row(row: Encoded, start: int) -> Encoded:
    return Encoded(row.tokens[start:], row.supervised[start:], row.calls[start:])


def test_rows_without_a_common_beginning(built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    rows = [run.train[0], cut_row(run.train[1], 3)]
    alone = Run(run.model, run.setup, 0, rows, rows, tmp_path)
    (trunk,) = alone.trunks
    assert (trunk.size, trunk.prefix) == (0, None)
    batch = make_batch(rows, 0)
    fast = weighted_loss(alone.split, None, trunk.hidden(rows, mx.array(batch.inputs)), batch)[0].item()
    assert fast == pytest.approx(plain_loss(run.model, rows), rel=1e-5)


def test_a_model_that_the_fast_loss_does_not_fit_is_refused(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    """Gemma scales its embeddings outside of its layers, which the split does not know."""
    from mlx_lm.models import gemma
    from mlx_lm.utils import save_config, save_model

    llama = built.model("llama")
    config = json.loads((llama / "config.json").read_text("utf-8"))
    config = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    config |= {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "head_dim": 16}
    mx.random.seed(0)
    folder = tmp_path / "gemma"
    folder.mkdir()
    save_model(folder, gemma.Model(gemma.ModelArgs.from_dict(config)))
    save_config(config, folder / "config.json")
    tokenizer = load_tokenizer(llama, load_preset("smol").model)
    data = qwen2_run.folder("convert_data")
    rows = load_rows(data, "train", tokenizer, find_turns(tokenizer), 1024)
    run = Run(load_trainable(folder, make_setup()), make_setup(), 0, rows, rows, tmp_path)
    with pytest.raises(StageError, match=r"^the fast loss .* train cannot do this architecture yet$"):
        run.verify()


def test_a_model_with_a_sliding_window_is_refused_when_it_is_loaded(built: BuiltOnce, tmp_path: Path) -> None:
    folder = tmp_path / "sliding"
    shutil.copytree(built.model("llama"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(StageError, match=r"^this architecture has layers with a sliding window"):
        load_trainable(folder, make_setup(num_layers=1))


def test_a_long_row_is_not_computed_the_plain_way(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    """Whose logits alone would take more memory than its training."""
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    middle = run.train[0].tokens[-20:]
    long = [replace_tokens(row, row.tokens[:-20] + middle * 40 + row.tokens[-20:]) for row in run.train[:2]]
    logits = 4 * len(long[0].tokens) * run.split.head.weight.shape[0]
    alone = Run(run.model, run.setup, 0, [*long, *run.train[2:]], run.valid, tmp_path)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    alone.verify()
    assert 0 < mx.get_peak_memory() - before < logits


def replace_tokens(row: Encoded, tokens: list[int]) -> Encoded:
    """The row with more tokens in its middle, none of them learned."""
    more = len(tokens) - len(row.tokens)
    at = row.supervised.index(True)
    supervised = row.supervised[:at] + [False] * more + row.supervised[at:]
    return Encoded(tokens, supervised, row.calls[:at] + [-1] * more + row.calls[at:])


# The run


def train_arguments(run: Pipeline, out: Path, **overrides: Any) -> list[str]:
    options = TRAIN | overrides
    flags = [part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    return [
        *("--model", str(run.model), "--fixes", ",".join(run.fixes)),
        *("--dialect", "hermes", "--chat-template", run.overrides.get("chat_template", "own")),
        *("--data", str(run.folder("convert_data")), "--out", str(out), *flags),
    ]


LONG = {
    **{"iters": 10, "save_every": 2, "eval_every": 5, "num_layers": 1},
    **{"dropout": 0.1, "schedule": "cosine", "warmup": 3},  # all that a resumed run has to know as well
}


def stop_after(process: subprocess.Popen[str], checkpoint: Path, how: signal.Signals) -> tuple[int, str, str]:
    """Signal the process as soon as the checkpoint is there."""
    wait_for(checkpoint / "state.json", process)
    process.send_signal(how)
    return finish(process)


def resumed_step(out: str) -> int:
    found = re.search(r"goes on from the checkpoint of step (\d+)\n", out)
    assert found, out
    return int(found[1])


def test_a_validation_can_be_cut_short(built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    assert run.validate(lambda: True) is None
    assert run.validate() == run.validate(bool), "and leaves nothing behind"


def test_a_stopped_run_goes_on_exactly(
    qwen2_run: Pipeline, artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped politely, then killed, then let through: the same adapter as without a stop, byte for byte."""
    whole = start_stage("train", train_arguments(qwen2_run, tmp_path / "whole", **LONG), artifacts)
    assert finish(whole)[::2] == (0, "")

    target, partial = tmp_path / "parts", tmp_path / ".parts.partial"
    command = train_arguments(qwen2_run, target, **LONG)
    code, _, error = stop_after(
        start_stage("train", command, artifacts), partial / "checkpoints" / "0000002", signal.SIGTERM
    )
    assert code == 130
    assert error == f"train: interrupted; finished work is kept in {partial}, the same command goes on\n"
    assert not target.exists()
    code, out, _ = stop_after(
        start_stage("train", command, artifacts), partial / "checkpoints" / "0000006", signal.SIGKILL
    )
    assert code == -signal.SIGKILL
    assert 2 <= resumed_step(out) < 10  # a polite stop saves the step that it was in
    assert not target.exists()
    capsys.readouterr()
    assert main([*command, "--check"]) == 3
    assert re.fullmatch(rf"train: unfinished at step [68] of 10: {target}\n", capsys.readouterr().out)
    assert main([*command, "--check", "--force", "--rank", "5"]) == 3
    assert capsys.readouterr().out == f"train: yet to be made: {target}\n", "which would not go on with it"
    code, out, error = finish(start_stage("train", command, artifacts))
    assert (code, error) == (0, "")
    assert resumed_step(out) in (6, 8)  # a killed run has what it saved by plan

    names = ["adapters.safetensors", "checkpoints/0000008/adapters.safetensors", "adapter_config.json"]
    for name in names:
        assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    points = [read_lines(folder / "log.jsonl", LossPoint) for folder in (target, tmp_path / "whole")]
    validated = [[(p.step, p.loss) for p in log if p.kind == "valid"] for log in points]
    assert validated[0] == validated[1]
    assert [step for step, _ in validated[0]] == [0, 5, 10]
    assert [p.step for p in points[0] if p.kind == "train"] == [10]
    assert sorted(p.name for p in (target / "checkpoints").iterdir()) == ["0000008", "0000010"]
    assert not list(target.rglob("optimizer.safetensors"))


def test_what_a_kill_left_among_the_checkpoints(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    checkpoints = Checkpoints(tmp_path / "run", keep=2)
    root = checkpoints.folder / "checkpoints"
    for half in ("0000001", ".0000002.partial"):  # half removed, half written
        (root / half).mkdir(parents=True)
        (root / half / "adapters.safetensors").touch()
    for step in (3, 4, 5):
        state = State(step=step, seconds=1.0, ended=True)
        checkpoints.save(state, run.model, run.optimizer)
        checkpoints.prune()
    assert sorted(p.name for p in root.iterdir()) == ["0000004", "0000005"]
    checkpoints.drop_optimizers()
    assert checkpoints.resume(run.model, run.optimizer) == state
    checkpoints.drop_optimizers()


def test_a_checkpoint_that_does_not_fit_is_refused(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    """MLX itself would load what fits, and go on with a fresh LoRA under an old optimizer."""
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    run.checkpoints.save(State(step=1), run.model, run.optimizer)
    saved = tmp_path / "checkpoints" / "0000001"
    assert run.checkpoints.resume(run.model, run.optimizer) == State(step=1)
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        whole = (saved / name).read_bytes()
        arrays: dict[str, Any] = dict(mx.load(str(saved / name)))  # type: ignore[arg-type]
        first = sorted(arrays)[0]
        others = {n: a for n, a in arrays.items() if n != first}
        reshaped = mx.concatenate([mx.contiguous(arrays[first]).reshape(-1), mx.zeros(1)])
        for wrong in (others | {first + "x": arrays[first]}, others, arrays | {first: reshaped}):
            mx.save_safetensors(str(saved / name), wrong)
            with pytest.raises(StageError, match=rf"{name} is not what this run trains, as after .*remove"):
                run.checkpoints.resume(run.model, run.optimizer)
        (saved / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(StageError, match=rf"cannot read \S+{name} \(.*remove its folder"):
            run.checkpoints.resume(run.model, run.optimizer)
        (saved / name).write_bytes(whole)
    (saved / "optimizer.safetensors").unlink()
    with pytest.raises(StageError, match=r"cannot read \S+optimizer.safetensors"):
        run.checkpoints.resume(run.model, run.optimizer)


def test_a_full_disk_is_one_line(built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path) -> None:
    """A limit of this process on the size of its files stands for the disk: the kernel refuses to write."""
    run = prepare_run("llama", 1, built, qwen2_run, tmp_path)
    run.checkpoints.save(State(step=1), run.model, run.optimizer)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        with pytest.raises(
            StageError, match=r"^cannot write \S+safetensors \(.*\): free some space; .* goes on$"
        ):
            run.checkpoints.save(State(step=2), run.model, run.optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.checkpoints.resume(run.model, run.optimizer) == State(step=1)
    run.checkpoints.save(State(step=3), run.model, run.optimizer)
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(left) == ["0000001", "0000003"], "what could not be written is gone"


def test_training_learns_and_a_second_call_does_nothing(
    qwen2_run: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = qwen2_run.folder("train")
    losses = [p.loss for p in read_lines(folder / "log.jsonl", LossPoint) if p.kind == "valid"]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(np.log(151936), rel=0.05)  # random weights know nothing
    assert losses[-1] < losses[0]
    assert run_work("train", qwen2_run.options("train")).up_to_date
    with pytest.raises(
        StageError, match=r"was made with iters=4 \(now 5\): --force replaces it, --out FOLDER"
    ):
        run_work("train", qwen2_run.options("train", iters=5))
    capsys.readouterr()
    for iters, reason in (
        (5, ", and a finished run takes no more steps: its "),
        (3, ": --force replaces it"),
    ):
        assert main([*train_arguments(qwen2_run, folder, iters=iters), "--check"]) == 2
        assert f"was made with iters=4 (now {iters}){reason}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qwen2_run", "qwen3_moe_run"])
def test_stock_mlx_lm_loads_the_adapter(name: str, request: pytest.FixtureRequest) -> None:
    run: Pipeline = request.getfixturevalue(name)
    adapter = run.folder("train")
    ours = load_trainable(run.model, make_setup())
    ours.load_weights(str(adapter / "adapters.safetensors"), strict=False)
    ours.eval()
    tokens = mx.array([encode_pipeline_rows(run)[0].tokens[:24]])
    with stock_functions():
        loaded: Any = mlx_lm.load(str(run.model), adapter_path=str(adapter))
        stock, tokenizer = loaded
        plain = mlx_lm.load(str(run.model))[0]
        for model in (stock, plain):
            model.set_dtype(mx.float32)  # its own bfloat16 differs by more than the adapter changes
        expected, base = stock(tokens), plain(tokens)
        mx.eval(expected, base)
    assert tokenizer.chat_template
    found = load_model(run.model)[0](tokens)
    assert float(mx.abs(found - base).max()) < 1e-4
    changed = float(mx.abs(expected - base).max())
    assert changed > 1e-2
    assert float(mx.abs(ours(tokens) - expected).max()) < 1e-2 * changed


def test_an_adapter_of_stock_mlx_lm_is_read_back(
    built: BuiltOnce, qwen2_run: Pipeline, tmp_path: Path
) -> None:
    base, rows = built.model("llama"), encode_pipeline_rows(qwen2_run)
    words = ["--train", "--iters", "1", "--batch-size", "1", "--num-layers", "1", "--max-seq-length", "32"]
    places = {"model": base, "data": qwen2_run.folder("convert_data"), "adapter-path": tmp_path / "adapter"}
    words += [word for name, place in places.items() for word in (f"--{name}", str(place))]
    words += ["--learning-rate", "1e-2", "--val-batches", "1"]
    command = [sys.executable, "-m", "mlx_lm", "lora", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = load_trainable(base, make_setup(num_layers=1, rank=8, scale=20.0))  # as mlx-lm has them
    tokens = mx.array([[token % 49152 for token in rows[0].tokens[:24]]])
    before = ours(tokens)
    load_adapter(ours, tmp_path / "adapter" / "adapters.safetensors")
    ours.eval()
    with stock_functions():
        stock = mlx_lm.load(str(base), adapter_path=str(tmp_path / "adapter"))[0]
        stock.set_dtype(mx.float32)
        expected = stock(tokens)
        mx.eval(expected)
    changed = float(mx.abs(expected - before).max())
    assert changed > 1e-2
    assert float(mx.abs(ours(tokens) - expected).max()) < 1e-2 * changed


# What a user can get wrong


def expect_refusal(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], pattern: str, out: Path
) -> str:
    """What was said before it."""
    capsys.readouterr()
    assert main(arguments) == 2
    said, error = capsys.readouterr()
    assert re.fullmatch(rf"train: {pattern}\n", error), error
    assert not out.exists()
    return said


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        ({"batch_size": 14}, "batch size 14 is larger than the 13 rows: lower --batch-size"),
        ({"num_layers": 3}, "--num-layers 3 is more than the model's 2 layers"),
        ({"lora_keys": "self_attn.qkv_proj"}, "--lora-keys self_attn.qkv_proj names no module of this model"),
        (
            {"max_seq_length": 100},
            r"\S+/train\.jsonl: \d rows are longer than 100 tokens, the first in line \d+ "
            r"\(1\d\d\): raise --max-seq-length or shorten them",
        ),
        ({"learning_rate": -1}, r"--learning-rate -1\.0: use a number above 0"),
        ({"seed": -1}, "--seed -1: use 0 or a positive number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unusable_options(
    overrides: dict[str, Any],
    pattern: str,
    qwen2_run: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    arguments = train_arguments(qwen2_run, tmp_path / "out", **overrides)
    said = expect_refusal(capsys, arguments, pattern, tmp_path / "out")
    assert "loading 1/" not in said, "before the weights are read"


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ('{"messages": ', "is not a converted row: run nox -s convert_data on this data"),
        ('{"prompt": "x"}', "is not a converted row: run nox -s convert_data on this data"),
        ("[1]", "is not a converted row: run nox -s convert_data on this data"),
        ('{"messages": {"role": "user"}}', "is not a converted row: run nox -s convert_data on this data"),
        (
            '{"text": "<|im_start|>user\\nHi<|im_end|>"}',
            "has no assistant's turn to learn from: remove the row",
        ),
    ],
)
def test_unusable_rows(line: str, pattern: str, built: BuiltOnce, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    good = '{"text": "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHo<|im_end|>"}\n'
    path.write_text(good + line + "\n", "utf-8")
    tokenizer = load_tokenizer(built.tokenizer("qwen2.5"))
    with pytest.raises(StageError, match=rf"train\.jsonl:2 {pattern}$"):
        load_rows(tmp_path, "train", tokenizer, find_turns(tokenizer), 64)
    path.write_text("", "utf-8")
    (tmp_path / "valid.jsonl").touch()
    for split, what in (("train", "train on"), ("valid", "validate with")):
        with pytest.raises(StageError, match=rf"{split}\.jsonl is empty: nothing to {what}$"):
            load_rows(tmp_path, split, tokenizer, find_turns(tokenizer), 64)


def test_missing_data_names_the_command(
    qwen2_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    arguments = ["--model", str(qwen2_run.model), "--out", str(tmp_path / "out")]
    model = re.escape(str(qwen2_run.model))
    place = rf"FAIR_RETEST_ARTIFACTS={tmp_path}/artifacts"
    same = rf"-- --model {model} --fixes fair"
    pattern = (
        rf"no output of convert_data in \S+, which does not exist: run {place} nox -s convert_data {same} "
        rf"\(or {place} nox -s retest_fair {same} for all stages\)"
    )
    expect_refusal(capsys, arguments, pattern, tmp_path / "out")


def test_a_loss_that_is_no_number_stops_the_run(
    llama_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate that ruins the adapter after some steps; the one checkpoint that stays is a good one."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    options = {"iters": 20, "learning_rate": 1e17, "save_every": 1, "eval_every": 20, "keep_checkpoints": 1}
    arguments = train_arguments(llama_run, tmp_path / "out", num_layers=1, **options)
    capsys.readouterr()
    for _ in range(2):  # the same command ends the same way
        assert main(arguments) == 2
        found = re.fullmatch(
            r"train: the (?:loss|norm of the gradient) is (?:nan|inf) in step (\d+), rows \d+, \d+ of the "
            r"training split: lower --learning-rate or set --clip-norm 1, with --force or another --out; the "
            rf"last good checkpoint, of step (\d+), is kept in {re.escape(str(tmp_path))}/\.out\.partial\n",
            capsys.readouterr().err,
        )
        assert found
        failed, kept = int(found[1]), int(found[2])
        assert kept == failed - 2 >= 1, "the loss of a step comes from the weights of the step before"
        checkpoints = tmp_path / ".out.partial" / "checkpoints"
        assert [p.name for p in checkpoints.iterdir()] == [f"{kept:07d}"]
    assert not (tmp_path / "out").exists()
    model = load_trainable(llama_run.model, make_setup(num_layers=1))
    load_adapter(model, checkpoints / f"{kept:07d}" / "adapters.safetensors")
    assert np.isfinite(plain_loss(model, encode_pipeline_rows(llama_run)))


def test_a_last_update_that_ruins_the_adapter_is_found(
    llama_run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step comes after it: the validation alone sees what it did."""
    monkeypatch.setenv("FAIR_RETEST_ARTIFACTS", str(tmp_path / "artifacts"))
    options = {"iters": 1, "learning_rate": 1e30, "save_every": 1, "num_layers": 1}
    pattern = (
        "the validation loss is (nan|inf) after 1 step: lower --learning-rate or set --clip-norm 1; there is "
        "no good checkpoint yet"
    )
    expect_refusal(capsys, train_arguments(llama_run, tmp_path / "out", **options), pattern, tmp_path / "out")
    points = read_lines(tmp_path / ".out.partial" / "log.jsonl", LossPoint)
    assert [(point.step, point.kind) for point in points] == [(0, "valid"), (1, "train")]
