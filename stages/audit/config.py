"""Checks of the model's config files: where a reply ends."""

from __future__ import annotations

from stages.audit.registry import Issue, check
from stages.audit.subject import Subject
from stages.audit.vectors import compare_vectors
from stages.core.stops import as_ids


@check("config", flaw=5)
def stop_token_differs(subject: Subject) -> Issue | None:
    """An end of turn in training at which the fused model will not stop."""
    missing = [token for token in subject.turn_ends if token not in subject.plan.stops]
    if not missing:
        return None
    rows = [row for row in subject.train if row.last_trained in missing]
    return Issue(
        "critical",
        f"{len(rows)} of {len(subject.train)} training rows end with {subject.show(missing)}, and the fused "
        f"model will stop at {subject.show(subject.plan.stops)} alone: its replies run to the limit",
        len(rows),
        len(subject.train),
        "fuse with the fix eos: the stop tokens are then those of the training data",
        compare_ends(subject),
    )


@check("config")
def stop_tokens_disagree(subject: Subject) -> Issue | None:
    """Files of the base that do not name the end of turn, where the fused model will stop all the same."""
    ends = set(subject.turn_ends)
    if not ends <= set(subject.plan.stops):
        return None  # stop_token_differs says it
    named = {name: ids for name, ids in eos_by_file(subject).items() if ids}
    odd = [name for name, ids in named.items() if not ends <= set(ids)]
    if not odd:
        return None
    repaired = "eos" in subject.fixes
    return Issue(
        "info" if repaired else "warning",
        f"turns end with {subject.show(subject.turn_ends)}, which {' and '.join(odd)} of the base "
        f"{'does' if len(odd) == 1 else 'do'} not name"
        + (f"; fuse writes {subject.show(subject.plan.stops)} into each" if repaired else ""),
        len(odd),
        len(named),
        "nothing to do" if repaired else "fuse with the fix eos: programs that read such a file never stop",
        compare_ends(subject),
    )


@check("config")
def turn_end_unlearned(subject: Subject) -> Issue | None:
    """An end of turn that no file of the base names: a base model, which may never have learned it.

    Training leaves the token's vectors as they are, so what they do not hold the adapter cannot give.
    """
    named = {token for ids in eos_by_file(subject).values() for token in ids}
    unknown = [token for token in subject.turn_ends if token not in named]
    if not unknown:
        return None
    rows = [row for row in subject.train if row.last_trained in unknown]
    return Issue(
        "warning",
        f"no file of the base names {subject.show(unknown)} as an end, with which {len(rows)} of "
        f"{len(subject.train)} training rows end: a base model may never have learned it, and training "
        f"leaves its vectors as they are; {describe_vectors(subject, unknown[0])}",
        len(rows),
        len(subject.train),
        "train the instruction-tuned model of the family, or trust a result only when few replies run away",
        compare_ends(subject),
    )


def describe_vectors(subject: Subject, token: int) -> str:
    """How long a token's vectors are beside those of ordinary tokens: untrained ones are often short."""
    lengths = compare_vectors(subject.base.folder, token, len(subject.tokenizer))
    if not lengths:
        return "they could not be measured"
    return "they are " + " and ".join(
        f"{share:.2f} times as long as the median token's ({name})" for name, share in lengths.items()
    )


@check("config")
def generation_config_without_eos(subject: Subject) -> Issue | None:
    """A generation_config.json that names no stop token, which some programs take for there is none."""
    generation = subject.base.generation
    if generation is None or as_ids(generation.get("eos_token_id")) or "eos" in subject.fixes:
        return None
    return Issue(
        "warning",
        "generation_config.json names no eos_token_id",
        1,
        1,
        "fuse with the fix eos, which writes it",
        compare_ends(subject),
    )


def eos_by_file(subject: Subject) -> dict[str, list[int]]:
    """The stop ids that each file of the base names."""
    return {
        "config.json": as_ids(subject.base.config.get("eos_token_id")),
        "generation_config.json": as_ids((subject.base.generation or {}).get("eos_token_id")),
        "the tokenizer": as_ids(subject.tokenizer.eos_token_id),
    }


def compare_ends(subject: Subject) -> tuple[str, ...]:
    """The five places that decide where a reply ends, side by side."""
    trained = list(dict.fromkeys(row.last_trained for row in subject.train if row.last_trained is not None))
    places = {
        **eos_by_file(subject),
        "the template's end of turn": subject.turn_ends,
        "last trained token": trained[:5],
    }
    return tuple(f"{place}: {subject.show(ids)}" for place, ids in places.items())
