"""What is trained: LoRA, DoRA or whole layers, in mlx-lm's own classes and adapter format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers

from stages.core import progress
from stages.core.compute import Model, open_model, read_weights
from stages.core.cpu import use_fast_linear
from stages.core.errors import StageError
from stages.core.platform import accelerator
from stages.core.preset import TrainSetup
from stages.core.words import plural

SHOWN_IN_MILLIONS = 100_000  # parameters


def load_trainable(base: Path, setup: TrainSetup) -> Model:
    """The base model, frozen but for its last `num_layers` layers' fresh adapter or their own weights."""
    model = open_trainable(base, setup)
    read_weights(model, base)
    return model


def open_trainable(base: Path, setup: TrainSetup) -> Model:
    """The same before its weights are read, which takes long: names and sizes are known by then.

    Raises StageError for what cannot be trained, or does not fit into the memory.
    """
    whole = setup.fine_tune_type == "full"
    model, config = open_model(base, dequantize=whole)
    _require_known_build(model)
    require_layers(setup, len(model.layers))
    model.freeze()
    if whole:
        for layer in model.layers[-setup.num_layers :]:
            unfreeze_layer(layer)
    else:
        _add_adapter(model, setup)
    model.train()
    parameters: Any = tree_flatten(model.trainable_parameters())
    trained = sum(array.size for _, array in parameters)
    if outside := [name for name, _ in parameters if not name.startswith("model.layers.")]:
        raise StageError(f"--lora-keys: {outside[0]} is outside of the layers, where train cannot train yet")
    for line in describe_trainable(model, setup, trained, packed="quantization" in config):
        progress.say(f"  {line}")
    return model


def describe_trainable(model: Model, setup: TrainSetup, trained: int, *, packed: bool) -> list[str]:
    """What is trained, so many parameters, and what is odd about it, on a base that is `packed` or not."""
    kind = {"lora": "LoRA", "dora": "DoRA", "full": "all weights"}[setup.fine_tune_type]
    count = (
        f"{trained / 1e6:.2f} M parameters" if trained >= SHOWN_IN_MILLIONS else plural(trained, "parameter")
    )
    lines = [f"{kind} on {setup.num_layers} of {plural(len(model.layers), 'layer')}: {count}"]
    if setup.fine_tune_type == "full":
        stock = (
            "whole weights do not fit into the packed ones of this base: fuse reads this adapter, stock "
            "mlx-lm does not; with lora and dora both do"
        )
        return [*lines, stock] if packed else lines
    sizes = [min(lora_sizes(module)) for module in list_adapted(model)]
    if narrow := [size for size in sizes if size < setup.rank]:
        lines.append(
            f"WARNING: --rank {setup.rank} is more than {len(narrow)} of {plural(len(sizes), 'matrix')} can "
            f"have, the smallest {min(narrow)}: what is above that costs memory and adds nothing"
        )
    return lines


def list_adapted(model: Model) -> list[Any]:
    """The modules of the model, or of a layer, that have an adapter."""
    return [module for _, module in model.named_modules() if "lora_a" in module]


def lora_sizes(module: Any) -> tuple[int, int]:
    """The widths of what goes into a matrix with an adapter, and of what comes out of it."""
    if module.lora_a.ndim == 3:  # of experts, in another order
        return int(module.lora_a.shape[-1]), int(module.lora_b.shape[-2])
    return int(module.lora_a.shape[0]), int(module.lora_b.shape[-1])


def unfreeze_layer(layer: Model) -> None:
    """Train a whole layer, in float32: 16 bits round small updates away, or the gradient to no number."""
    layer.set_dtype(mx.float32)
    layer.unfreeze()


def require_layers(setup: TrainSetup, layers: int) -> None:
    """Raise StageError when more layers are to be trained than the model has."""
    if setup.num_layers > layers:
        raise StageError(
            f"--num-layers {setup.num_layers} is more than the model's {plural(layers, 'layer')}"
        )


def count_layers(base: Path) -> int | None:
    """The layers that a model folder's config names; None where only loading the model can tell."""
    try:
        config = json.loads((base / "config.json").read_text("utf-8"))
    except ValueError:
        return None  # which loading explains
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    counts = [part.get("num_hidden_layers") for part in parts if isinstance(part, dict)]
    return next((count for count in counts if isinstance(count, int)), None)


def _require_known_build(model: Model) -> None:
    """Raise StageError for a model that is not embedding, layers, norm and head, as Llama's are.

    Every layer has to attend to all earlier positions, or a prefix could not be computed apart.
    """
    inner = getattr(model, "model", None)
    if inner is None or not all(hasattr(inner, part) for part in ("embed_tokens", "layers", "norm")):
        raise StageError(
            f"{type(model).__module__.rsplit('.', 1)[-1]} models are built in another way than train knows: "
            "take a model of the Llama or Qwen kind"
        )
    if not all(type(cache) is KVCache for cache in make_prompt_cache(model)):
        raise StageError(
            "this architecture has layers with a sliding window or a state, which train cannot do yet"
        )


def _require_keys(model: Model, setup: TrainSetup) -> None:
    names = {name for layer in model.layers[-setup.num_layers :] for name, _ in layer.named_modules()}
    names |= {name for name, _ in model.named_modules()}
    if unknown := [key for key in setup.lora_keys if key not in names]:
        raise StageError(f"--lora-keys {unknown[0]} names no module of this model")


def _add_adapter(model: Model, setup: TrainSetup) -> None:
    _require_keys(model, setup)
    if accelerator() == "cpu":
        use_fast_linear()
    try:
        linear_to_lora_layers(
            model, setup.num_layers, lora_parameters(setup), use_dora=setup.fine_tune_type == "dora"
        )
    except ValueError as error:  # such as DoRA on a mixture of experts
        raise StageError(f"--fine-tune-type {setup.fine_tune_type}: {error}") from None


def lora_parameters(setup: TrainSetup) -> dict[str, Any]:
    """The LoRA set-up in mlx-lm's words."""
    keys = {"keys": list(setup.lora_keys)} if setup.lora_keys else {}
    return {"rank": setup.rank, "scale": setup.scale, "dropout": setup.dropout, **keys}


def write_config(folder: Path, base: Path, setup: TrainSetup) -> None:
    """`adapter_config.json`, from which mlx-lm loads the adapter."""
    config = {
        "fine_tune_type": setup.fine_tune_type,
        "model": str(base),
        "num_layers": setup.num_layers,
        "lora_parameters": lora_parameters(setup),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
