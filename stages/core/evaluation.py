"""An output of eval as it lies on the disk. Its files have to tell the same, and what its manifest tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.artifact import fingerprint_folder
from stages.core.errors import StageError
from stages.core.records import EvalSummary, Manifest, RawReply, Score, read_lines, read_record

SUMMARY, SCORES, REPLIES = "summary.json", "scores.jsonl", "replies.jsonl"
FILES = (SUMMARY, SCORES, REPLIES, "codes.jsonl")


@dataclass(frozen=True)
class Evaluation:
    """What a model replied to a suite, and what was made of it."""

    summary: EvalSummary
    scores: list[Score]
    replies: list[RawReply]


def read_evaluation(folder: Path, manifest: Manifest) -> Evaluation:
    """Read an output of eval.

    Raises StageError where a file is missing or cannot be read, and where the files are not those that eval
    wrote: someone may have edited them, or mixed two outputs. What to do is for the caller to say.
    """
    for name in (SUMMARY, SCORES, REPLIES):
        if not (folder / name).is_file():
            raise StageError(f"{folder} lacks {name}")
    found = Evaluation(
        read_record(folder / SUMMARY, EvalSummary),
        read_lines(folder / SCORES, Score),
        read_lines(folder / REPLIES, RawReply),
    )
    if denied := _find_denial(found, manifest):
        raise StageError(f"{folder}: {denied}")
    foreign = {path.name for path in folder.iterdir()}.difference(FILES)
    if fingerprint_folder(folder, foreign) != manifest.content:
        raise StageError(f"{folder}: its files are not as eval wrote them")
    return found


def _find_denial(found: Evaluation, manifest: Manifest) -> str:
    """Where the summary tells other than the scores or the manifest, or the replies are those of others."""
    summary, decided = found.summary, found.summary.tool_or_direct
    right = sum(score.strict.decision for score in found.scores)
    if (right, len(found.scores)) != (decided.k, decided.n):
        return f"the summary says {decided.k} of {decided.n}, the scores say {right} of {len(found.scores)}"
    if [score.id for score in found.scores] != [reply.id for reply in found.replies]:
        return f"{SCORES} and {REPLIES} are about other queries"
    told: dict[str, Any] = {
        "suite": summary.suite,
        "suite_version": summary.suite_version,
        "scorer_version": summary.scorer_version,
    }
    made = manifest.recipe.settings
    for name, value in told.items():
        if made.get(name, value) != value:
            return f"the summary says {name.replace('_', ' ')} {value}, the manifest {made[name]}"
    return ""
