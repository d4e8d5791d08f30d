"""Whether an arm's records belong together: each made from the outputs that lie there now.

A stage that ran again on its own leaves what later stages made of its earlier output in place.
Such records would stand in one report and speak of different models or rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.fixes import UPSTREAM
from stages.core.records import Manifest

_ROLES = {"convert_data": "data", "train": "adapter", "fuse": "model", "quantize": "model"}  # of an output
MADE_FROM = {  # by stage: the input of its recipe that is another stage's output, and that stage
    stage: (_ROLES[source], source) for stage, source in UPSTREAM.items()
}
SHARED = {"data": "rows", "model": "base models"}  # inputs of both audit and train
MODEL_CHAIN = ("train", "fuse", "quantize", "eval")


def require_lineage(
    options: Options, manifests: Mapping[str, Manifest], evaluations: Mapping[str, Manifest]
) -> None:
    """Raise StageError for the first output that was made from another one than lies upstream.

    `manifests` are the arm's, by stage; `evaluations` those of eval, by suite. What is not there
    proves nothing and is left out: a model may have been evaluated from `--data` alone. Replies of a server
    or a file come from no output, and the verdict takes them so.
    """
    made = [(stage, stage, manifests[stage]) for stage in MADE_FROM if stage in manifests]
    made += [
        ("eval", f"eval {suite}", manifest)
        for suite, manifest in evaluations.items()
        if manifest.facts.get("engine", "local") == "local"
    ]
    for stage, title, manifest in made:
        role, upstream = MADE_FROM[stage]
        source = manifests.get(upstream)
        if source and manifest.recipe.inputs.get(role) != source.content:
            age = "newer" if source.created > manifest.created else "another one"
            raise StageError(
                f"{_name(options)}: {title} was not made from the output of {upstream} in "
                f"{options.place(upstream)}, which is {age} ({source.created}): {_remedy(options, stage)}"
            )
    if "audit" in manifests and "train" in manifests:
        _require_same_inputs(options, manifests["audit"], manifests["train"])


def _require_same_inputs(options: Options, audit: Manifest, train: Manifest) -> None:
    """The audit must be about the rows, the base model and the chat template of the training."""
    pairs = {noun: [m.recipe.inputs.get(role) for m in (audit, train)] for role, noun in SHARED.items()}
    if None not in (audit.template, train.template):  # older audits do not say it
        pairs["chat templates"] = [audit.template, train.template]
    for noun, (audited, trained) in pairs.items():
        if audited != trained:
            older = "train" if train.created < audit.created else "audit"
            raise StageError(
                f"{_name(options)}: audit and train had different {noun}, {older} is the older: "
                f"{_remedy(options, older)}"
            )


def _name(options: Options) -> str:
    seed = f", seed {options.seed}" if options.seed else ""
    return f"{options.preset.name}, arm {options.arm}{seed}"


def _remedy(options: Options, stage: str) -> str:
    """The command that makes an output anew, and what then has to follow."""
    later = MODEL_CHAIN[MODEL_CHAIN.index(stage) + 1 :] if stage in MODEL_CHAIN else ()
    then = f", then {', '.join(later)} likewise" if later else ""
    return (
        f"run {options.command(stage)} --force{then}; or remove {options.place('eval')} to leave this arm out"
    )
