"""Fills the plan: so many rows of each kind in each split, every query used once."""

from __future__ import annotations

import os
import random
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answers import write_answer
from overlap import SuiteGuard
from queries import Job, Phrases
from rows import call_turns, write_bare, write_row
from runners import Workshop, check_tools
from scratch import Scratch, load_layouts
from stages.core.likeness import normalise

# Questions that may follow an opening such as "Quick question:" in lower case.
_OPENABLE = {"What", "How", "When", "Why", "Which", "Is", "Should", "Can", "Does", "Do", "Explain"}
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Draft:
    """A row before its tools have run. `style` is xml, bare or direct."""

    style: str
    job: Job | None = None
    query: str = ""
    answer: str = ""
    responds: bool = True
    inline: bool = False
    system: str | None = None


def build_corpus(datasets: Path) -> dict[str, list[str]]:
    """The rows of each split as JSON lines, in their final order.

    Raises StageError when a tool is missing or has another version than the plan names.
    """
    phrase_files = datasets / "build" / "phrases"
    plan = tomllib.loads((phrase_files / "plan.toml").read_text(encoding="utf-8"))
    check_tools(plan["tools"])
    layouts = load_layouts(datasets / "projects", phrase_files / "layouts.toml")
    desk = Desk(Phrases(phrase_files, layouts), SuiteGuard(datasets / "suites"), plan)
    drafts = [(split, draft) for split in SPLITS for draft in desk.draft_split(split)]
    rows = run_drafts(drafts, plan)
    return {split: [row for (s, _), row in zip(drafts, rows, strict=True) if s == split] for split in SPLITS}


class Desk:
    """Drafts rows, and remembers every query so that none is used twice."""

    def __init__(self, phrases: Phrases, guard: SuiteGuard, plan: dict[str, Any]) -> None:
        self._phrases = phrases
        self._guard = guard
        self._plan = plan
        self._used: set[str] = set()
        pairs = [(pair["q"], pair["a"]) for pair in phrases.table("direct")["pair"]]
        random.Random(f"{plan['seed']} direct").shuffle(pairs)
        self._pairs = iter(pairs)

    def draft_split(self, split: str) -> list[Draft]:
        """All drafts of a split, shuffled."""
        plan = self._plan[split]
        rng = random.Random(f"{self._plan['seed']} {split}")
        xml = [self._new_job(kind, rng) for kind, number in plan["xml"].items() for _ in range(number)]
        sequences = [self._new_job("sequence", rng) for _ in range(plan["sequences"])]
        bare = [self._new_job(kind, rng) for kind, number in plan["bare"].items() for _ in range(number)]
        number_direct = plan["rows"] - len(xml) - len(sequences) - len(bare)
        drafts = (
            self._draft_xml(xml, sequences, plan, rng)
            + [Draft("bare", job) for job in bare]
            + self._draft_direct(number_direct, plan["direct_without_system"], rng)
        )
        rng.shuffle(drafts)
        return drafts

    def _draft_xml(
        self, jobs: list[Job], sequences: list[Job], plan: dict[str, Any], rng: random.Random
    ) -> list[Draft]:
        silent = len(jobs) + len(sequences) - plan["responses"]
        order = list(range(len(jobs)))
        without = set(rng.sample(order, silent))
        inline = set(rng.sample(order, plan["inline"]))
        other = set(rng.sample(order, plan["other_system"] - min(plan["other_system"], len(sequences))))
        usual, unusual = self._plan["system"], self._plan["other_system"]
        drafts = [
            Draft(
                "xml",
                job,
                responds=number not in without,
                inline=number in inline,
                system=unusual if number in other else usual,
            )
            for number, job in enumerate(jobs)
        ]
        return drafts + [Draft("xml", job, system=unusual) for job in sequences]

    def _draft_direct(self, number: int, without_system: int, rng: random.Random) -> list[Draft]:
        drafts: list[Draft] = []
        while len(drafts) < number:
            try:
                query, answer = next(self._pairs)
            except StopIteration:
                raise ValueError(f"direct.toml has {number - len(drafts)} questions too few") from None
            if rng.random() < 0.2 and query.split()[0] in _OPENABLE:
                opening = rng.choice(self._phrases.table("wrappers")["direct"])
                query = opening.format(query[0].lower() + query[1:])
            if self._accepts(query):
                system = None if len(drafts) < without_system else self._plan["system"]
                drafts.append(Draft("direct", query=query, answer=answer, system=system))
        return drafts

    def _new_job(self, kind: str, rng: random.Random) -> Job:
        """A job whose query is new. Raises ValueError when the phrases of a kind are used up."""
        for _ in range(1000):
            job = self._phrases.make_job(kind, rng)
            if self._accepts(job.query):
                return job
        raise ValueError(f"no new query of kind {kind} in 1000 tries: add phrases")

    def _accepts(self, query: str) -> bool:
        key = normalise(query)
        if key in self._used or not self._guard.allows(query):
            return False
        self._used.add(key)
        return True


def run_drafts(drafts: list[tuple[str, Draft]], plan: dict[str, Any]) -> list[str]:
    """Run the tools of every draft, a few at a time, and write the rows."""
    cache: dict[tuple[str, ...], Any] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        scratch = Scratch(Path(folder).resolve())

        def finish(numbered: tuple[int, tuple[str, Draft]]) -> str:
            number, (split, draft) = numbered
            return finish_draft(
                draft, number, scratch, cache, plan, random.Random(f"{plan['seed']} {split} {number}")
            )

        return list(pool.map(finish, enumerate(drafts)))


def finish_draft(
    draft: Draft,
    number: int,
    scratch: Scratch,
    cache: dict[tuple[str, ...], Any],
    plan: dict[str, Any],
    rng: random.Random,
) -> str:
    """The JSON line of a draft. Code runs even where its output is not shown: every call works."""
    if draft.job is None:
        return write_row([("user", draft.query), ("assistant", draft.answer)], draft.system)
    job = draft.job
    writes = any("write_file" in step.functions for step in job.steps)
    history = any(step.path.startswith("git ") for step in job.steps)
    folder = scratch.private(job.layout, number) if writes else scratch.shared(job.layout, history)
    workshop = Workshop(folder, cache)
    outputs, answers = [], []
    for step in job.steps:
        outputs.append(workshop.execute(step.code, plan["max_lines"]))
        answers.append(write_answer(step, workshop.results, outputs[-1], rng))
    if draft.style == "bare":
        return write_row([("user", job.query), ("assistant", write_bare(job.steps[0].code))], None)
    shown = outputs if draft.responds else None
    return write_row(call_turns(job, shown, " ".join(answers), draft.inline), draft.system)
