"""The stage: fused model to quantized model."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

from mlx_lm.utils import compute_bits_per_weight, load_model, quantize_model, save_config, save_model

from stages.core import progress
from stages.core.artifact import build_artifact, fingerprint_model, is_current, require_artifact
from stages.core.cli import Options, Outcome, artifacts_root, finished
from stages.core.compute import Model, compute_weights, device_free_gb, explain_loading
from stages.core.errors import StageError
from stages.core.models import find_local_model, missing_files
from stages.core.platform import folder_size_gb, require_disk, require_memory
from stages.core.preset import QuantizeSetup, option_choices
from stages.core.records import Manifest
from stages.core.tokenizer import load_tokenizer, require_template
from stages.quantize.change import Change, describe_change, measure_change
from stages.quantize.recipe import make_recipe

GROUP_SIZES: tuple[int, ...] = option_choices(QuantizeSetup.model_fields["group_size"].annotation) or ()
WEIGHTS = (".safetensors", ".safetensors.index.json")


def quantize(options: Options) -> Outcome:
    """Quantize one arm's fused model."""
    fused, target, setup = options.input("fuse"), options.output("quantize"), options.preset.quantize
    manifest = require_artifact(fused, "fuse", options.advice("fuse"))
    recipe, bits = make_recipe(options), options.bits
    if is_current(target, recipe, force=options.force):
        return finished(target)
    if lost := missing_files(fused):  # older manifests do not name their files
        raise StageError(f"{fused} lacks {lost}: make it again with {options.repeat(manifest)} --force")
    size_gb = folder_size_gb(fused) * bits / 16
    require_disk(target, size_gb + 0.02, "the quantized model")
    require_memory(size_gb, "the quantized model", device_free_gb())
    require_template(fused, load_tokenizer(fused), manifest.template)
    with build_artifact(target, recipe, given=options.given) as build:
        per_weight = quantize_folder(fused, build.folder, bits=bits, group_size=setup.group_size)
        build.facts |= {
            "bits": bits,
            "bits_per_weight": round(per_weight, 3),
            "disk_gb": folder_size_gb(build.folder),
        }
        build.inherit(manifest)
        change = find_change(options, manifest, fused, build.folder)
        build.facts |= {"change": change} if change else {}
    line = f"{bits} bits, {per_weight:.2f} per weight with scales, {build.facts['disk_gb']:.3f} GB"
    lines = (line, describe_change(change)) if change else (line,)
    return Outcome(target, lines=lines, facts=finished(target).facts)


def find_change(options: Options, made: Manifest, fused: Path, quantized: Path) -> Change | None:
    """What rounding leaves of the adapter; None where the base it was trained on is not on this machine."""
    base = find_local_model(options.preset, artifacts_root())
    if base is None or fingerprint_model(base) != made.recipe.inputs.get("model"):
        return None
    return measure_change(base, fused, quantized)


def quantize_folder(source: Path, target: Path, *, bits: int, group_size: int) -> float:
    """Write the quantized copy of a model folder; returns bits per weight, scales included.

    Raises StageError for a folder that does not load, and for a group size that another one beats.
    """
    with explain_loading(source):
        model, config = load_model(source, lazy=True)
        require_fit(model, group_size)
        with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints what we say ourselves
            model, settings = quantize_model(model, config, group_size, bits)
        compute_weights(model, "quantizing")
    per_weight = float(compute_bits_per_weight(model))
    save_model(target, model, donate_model=True)
    save_config(settings, target / "config.json")
    _copy_rest(source, target)
    return per_weight


def require_fit(model: Model, group_size: int) -> None:
    """See that the groups divide the rows of the matrices: mlx-lm leaves any other matrix as it is.

    Raises StageError where a size of the option would leave fewer.
    """
    skip = getattr(model, "quant_predicate", None) or (lambda _path, _module: True)
    widths = {
        path: module.weight.shape[-1]
        for path, module in model.named_modules()
        if hasattr(module, "to_quantized") and skip(path, module)
    }
    left = {size: [path for path, width in widths.items() if width % size] for size in GROUP_SIZES}
    if not left[group_size]:
        return
    path, fewest = left[group_size][0], min(map(len, left.values()))
    found = (
        f"{len(left[group_size])} of {len(widths)} matrices would stay as they are, "
        f"such as {path} with rows of {widths[path]}"
    )
    if len(left[group_size]) > fewest:
        sizes = " or ".join(str(size) for size, paths in left.items() if len(paths) == fewest)
        raise StageError(f"--group-size {group_size} does not fit: {found}; use {sizes}")
    progress.say(f"  no group size fits all: {found}")


def _copy_rest(source: Path, target: Path) -> None:
    """Tokenizer, template and generation config: everything but weights, config and bookkeeping."""
    for path in source.iterdir():
        known: Any = path.name in ("config.json", "manifest.json") or path.name.endswith(WEIGHTS)
        if path.is_file() and not known:
            shutil.copyfile(path, target / path.name)
