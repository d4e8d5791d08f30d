"""The schema of every JSON file that crosses a stage boundary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.core.errors import StageError
from stages.core.files import write_whole
from stages.core.problems import first_problem

SCHEMA_VERSION = 1
DEEPEST = 100  # objects and lists in each other; orjson writes 254


def _require_version(number: int) -> int:
    if number != SCHEMA_VERSION:
        raise ValueError(f"version {number}, and this program reads version {SCHEMA_VERSION}")
    return number


SchemaVersion = Annotated[int, AfterValidator(_require_version)]


class Record(BaseModel):
    """A JSON file with a known shape: an unknown or missing key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


R = TypeVar("R", bound=BaseModel)


class Recipe(Record):
    """What decides the content of an artifact."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    stage: str = Field(description="the stage that makes it")
    settings: dict[str, Any] = Field(description="the resolved settings that the stage uses")
    inputs: dict[str, str] = Field(description="fingerprint of every input, by its role")


class Given(Record):
    """What the command line of a run said, for reports that name a command which says it again."""

    model: str = Field(description="--model as it was typed: a preset, a file or a folder")
    data: str | None = Field(description="--data, None for the output of the stage before")
    options: dict[str, Any] = Field(description="options of the preset that were given another value")
    rows: dict[str, Any] = Field(default_factory=dict, description="flags of the rows, such as valid_share")
    flags: dict[str, Any] = Field(
        default_factory=dict,
        description="flags of the stage alone, such as render; older runs do not say them",
    )

    @property
    def overrides(self) -> dict[str, Any]:
        """The options of the preset as a command line has them: lists are tuples again."""
        return {name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()}


class Manifest(Record):
    """The last file written into an artifact."""

    recipe: Recipe
    content: str = Field(description="SHA-256 over the artifact's files")
    files: tuple[str, ...] = Field((), description="the names of these files; older manifests have none")
    created: str = Field(description="UTC, ISO 8601")
    seconds: float = Field(description="wall time of the stage")
    peak_memory_gb: float = Field(description="highest resident memory of the process, 1e9 bytes")
    platform: str
    packages: dict[str, str] = Field(description="versions that decide a result")
    commit: str = Field(description="commit of the code, with + when files differed")
    facts: dict[str, Any] = Field(description="what the stage found out, such as stop ids")
    given: Given | None = Field(None, description="None where no command line was read")
    seed: int | None = Field(None, description="what was random here or upstream; None where nothing was")
    template: str | None = Field(
        None, description="hash of the chat template of the model; None for rows, which have none yet"
    )
    stop_ids: list[int] | None = Field(
        None, description="ids that end a turn in training, or at which the model stops"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, data: Any) -> Any:
        """Manifests of the first days have template and stop ids among the facts."""
        if not isinstance(data, dict) or not isinstance(facts := data.get("facts"), dict):
            return data
        moved = {name: facts[name] for name in ("template", "stop_ids") if name in facts}
        return moved | data | {"facts": {name: fact for name, fact in facts.items() if name not in moved}}

    @property
    def told(self) -> dict[str, Any]:
        """The facts, with the chat template and the stop ids where they are known."""
        known = {"template": self.template, "stop_ids": self.stop_ids}
        return self.facts | {name: value for name, value in known.items() if value is not None}


class Finding(Record):
    """One thing that the audit found."""

    check: str = Field(description="the check's name, such as mixed_dialects")
    severity: Literal["critical", "warning", "info"]
    place: Literal["data", "tokenizer", "template", "config", "plan"]
    flaw: int | None = Field(None, description="number of the published flaw, 1 to 5, where it is one")
    message: str = Field(description="what is wrong, with the count")
    count: int = Field(description="rows or files concerned")
    total: int = Field(description="of how many")
    fix: str = Field(description="what to do, in one line")
    examples: list[str] = Field(default_factory=list, description="file:line, or a short excerpt")


class AuditReport(Record):
    """The audit of one arm's set-up, before any training."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    model: str
    arm: str
    checks: list[str] = Field(description="every check that ran, found something or not")
    findings: list[Finding]
    suites: dict[str, str] = Field(
        default_factory=dict,
        description="fingerprint of every suite whose queries it looked for in the rows, by name; older "
        "audits do not say it",
    )

    @property
    def critical(self) -> list[Finding]:
        """The findings that make any verdict inconclusive."""
        return [f for f in self.findings if f.severity == "critical"]


class LossPoint(Record):
    """One line of a training log."""

    step: int = Field(description="optimizer steps done")
    kind: Literal["train", "valid"]
    loss: float = Field(description="mean cross-entropy per supervised token, in nats")
    call_loss: float | None = Field(None, description="the same over the tokens of calls alone")
    exact_calls: float | None = Field(
        None, description="share of calls that greedy decoding would write exactly, given what stands before"
    )
    memory_gb: float | None = Field(
        None,
        description="highest memory of the process so far, with the packages and the model, or of the device",
    )
    learning_rate: float | None = None
    tokens_per_second: float | None = Field(
        None, description="of the steps alone; tokens of the rows, padding left out; None: not measured"
    )
    seconds: float = Field(description="since the start of the run, earlier parts included")


class CodeCall(Record):
    """One call of a Code Mode function by code that ran."""

    function: str = Field(description="such as typecheck")
    arguments: dict[str, str | None] = Field(
        description="what was passed, by parameter name or as the code named it; None for what is no text"
    )
    recorded: bool = Field(
        description="False where the sample project has no recorded answer and a plain one was given"
    )


class CodeRun(Record):
    """What the code of a call did when it ran in the sandbox."""

    outcome: Literal["ran", "failed", "unsupported"] = Field(
        description="failed: an error that the code is to blame for, a limit among them; "
        "unsupported: the sandbox lacks something that Python has, which says nothing about the code"
    )
    error: str | None = Field(description="in one line, its kind first; None when the code ran to its end")
    timed_out: bool = Field(description="the error is that the time was up")
    calls: list[CodeCall] = Field(description="the calls that were made, in order, failed ones among them")
    printed: str = Field(description="what was printed, cut at the limit")
    printed_something: bool = Field(description="more than white space, wherever it was cut")
    fields_used: list[str] = Field(
        description="fields of typed results that were read, such as RuffResult.violation_count"
    )
    fields_missing: list[str] = Field(
        description="names that code asked typed results for and that they do not have"
    )

    @property
    def works(self) -> bool | None:
        """Whether the code ran to its end; None where the sandbox cannot tell."""
        return None if self.outcome == "unsupported" else self.outcome == "ran"


class QueryRun(Record):
    """One code of a reply, and what came of it."""

    id: str = Field(description="the query's id")
    code: str
    run: CodeRun


class RawReply(Record):
    """One raw answer of a model. Scoring reads these again and needs no model."""

    id: str = Field(description="the query's id")
    text: str = Field(description="the reply without its stop token, special tokens kept as text")
    tokens: int | None = Field(None, description="tokens generated, its stop token too; None: not counted")
    finish: Literal["stop", "length", "call"] | None = Field(
        description="length: hit the token limit, a runaway reply; call: cut off behind its first call; "
        "None: nobody saw it, a server could not read the reply"
    )
    seconds: float | None = Field(
        None, description="its part of the run: of all time an equal share for every query in work"
    )
    prompt_tokens: int | None = Field(None, description="length of the prompt; None: not counted")
    calls_by: Literal["model", "server"] = Field(
        "model", description="server: its parser read the calls, or could not; `text` has them written anew"
    )
    served: dict[str, Any] | None = Field(
        None, description="a server's message and finish_reason, or the status and error of one that "
        "could not read what its model wrote"
    )  # fmt: skip


Cause = Literal[
    "decided wrong",
    "said nothing",
    "wrong dialect",
    "malformed",
    "wrong tool",
    "wrong arguments",
    "code fails",
    "ran away",
    "repeated itself",
]
"""The first thing that went wrong in a reply."""


class Parsed(Record):
    """One reading of a reply, strict (one dialect) or lenient (any dialect), judged in each respect.

    None: there was nothing to judge.
    """

    dialect: str | None = Field(description="the dialect found, None without a call")
    calls: list[dict[str, Any]] = Field(description="name and arguments of each call")
    problems: list[str]
    decision: bool = Field(
        description="tool or direct, as the query wants; leniently what looks like a call is one"
    )
    format: bool | None = Field(
        description="what looks like a call is one: strictly without a problem, leniently at all"
    )
    tool: bool | None = Field(
        description="an accepted function was called; None for direct queries, or where only a run could tell"
    )
    arguments: bool | None = Field(description="its arguments match as well; None as for `tool`")
    code: bool | None = Field(
        description="the code of its calls ran to its end, has something that prints and used fields that "
        "there are; None: it was not run"
    )
    printed: bool | None = Field(
        None, description="its code printed something; None: it did not end, or had nothing to show"
    )
    fields: bool | None = Field(
        None, description="its code asked typed results only for fields that they have; None: it got none"
    )
    stop: bool | None = Field(
        description="it ended by itself and wrote no turn but its own; leniently also behind a call"
    )
    whole: bool | None = Field(
        description="right in every respect that was judged; None: nothing is known to be wrong, but only a "
        "run of its code could tell whether tool and arguments are right"
    )


class DirectAnswer(Record):
    """How an answer without a tool reads. No measure of whether it is true."""

    not_empty: bool
    on_terms: bool | None = Field(description="uses one of the query's terms; None where it has none")
    not_repeating: bool = Field(description="says nothing over and over")
    no_call: bool = Field(description="holds nothing that looks like a call")


class Score(Record):
    """The scores of one reply."""

    id: str
    category: str
    kind: Literal["tool", "direct"]
    tools: list[str] = Field(description="the functions that the first accepted answer calls")
    strict: Parsed
    lenient: Parsed
    runaway: bool | None = Field(description="it hit the token limit; None: nobody knows how it ended")
    cause: Cause | None = Field(
        description="what went wrong first, read strictly; None: nothing that is known"
    )
    answer: DirectAnswer | None = Field(description="None for tool queries")


class Timing(Record):
    """What the run cost, measured in the same way for every model."""

    load_seconds: float | None = Field(description="loading the model")
    first_token_seconds: float | None = Field(
        None,
        description="from a whole prompt to its first token, one query alone; of a server, to the "
        "answer of one token, so the way there and what it kept of earlier prompts are in it",
    )
    seconds_per_query: float | None = Field(description="generation time over the number of queries")
    seconds_median: float | None = Field(None, description="median of the queries' parts of the time")
    seconds_p95: float | None = Field(None, description="95th percentile of the same, nearest rank")
    tokens_per_second: float | None = Field(description="generated tokens over the generation time")
    generated_tokens: int | None = None
    runaway_tokens: float | None = Field(None, description="share of the tokens that runaway replies took")
    runaway_seconds: float | None = Field(None, description="share of the time that runaway replies took")
    peak_memory_gb: float | None = Field(description="highest resident or device memory, 1e9 bytes")
    disk_gb: float | None = Field(description="size of the model folder, 1e9 bytes")


class Rate(Record):
    """A count out of a total."""

    k: int = Field(ge=0)
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _part_of_whole(self) -> Rate:
        if self.k > self.n:
            raise ValueError(f"{self.k} out of {self.n}")
        return self

    @property
    def value(self) -> float:
        """k / n."""
        return self.k / self.n


class Rates(Record):
    """How many replies were right in each respect, in one reading; None where none was judged."""

    decision: Rate = Field(description="tool or direct decided right")
    format: Rate | None = Field(None, description="of the replies with something that looks like a call")
    tool: Rate | None = Field(None, description="accepted functions called, of the tool queries")
    arguments: Rate | None = Field(None, description="with accepted arguments, of the tool queries")
    code: Rate | None = Field(None, description="code that ran well, of what was run")
    printed: Rate | None = Field(
        None, description="code that printed something, of what ran to its end and had something to show"
    )
    fields: Rate | None = Field(
        None, description="code that asked only for fields that there are, of what got a typed result"
    )
    stop: Rate | None = Field(None, description="ended by itself")
    whole: Rate | None = Field(None, description="right in every respect")


class AnswerRates(Record):
    """How the answers to direct queries read."""

    not_empty: Rate
    on_terms: Rate | None = Field(None, description="of the queries that have terms")
    not_repeating: Rate
    no_call: Rate


class EvalSummary(Record):
    """The result of one model, arm and suite."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    scorer_version: int = Field(description="raised by every change of the rules that can change a score")
    model: str = Field(description="the preset's name")
    title: str
    arm: str
    seed: int
    suite: str
    suite_version: int
    suite_fingerprint: str = Field(
        description="of its queries and accepted calls; of recorded results that of the shipped suite "
        "which stands for the published queries"
    )
    dialect: str = Field(description="dialect of the strict parser")
    source: Literal["measured", "recorded"] = "measured"
    engine: Literal["local", "endpoint", "recorded"] = Field(
        "local", description="what answered; an endpoint's calls are read by its server's own parser"
    )
    tool_or_direct: Rate = Field(
        description="the accuracy that the first experiment published: tool or direct decided right, strict"
    )
    tool_queries: Rate | None = Field(None, description="the same on tool queries")
    direct_queries: Rate | None = Field(None, description="the same on direct queries")
    strict: Rates | None = Field(None, description="read in the dialect alone; None where not published")
    lenient: Rates | None = Field(None, description="read in any dialect")
    runaway: Rate | None = Field(None, description="replies that hit the token limit")
    answers: AnswerRates | None = Field(None, description="None without direct queries")
    causes: dict[Cause, int] = Field(
        default_factory=dict, description="failed replies by what went wrong first, read strictly"
    )
    by_category: dict[str, Rates] = Field(default_factory=dict, description="read strictly")
    by_tool: dict[str, Rates] = Field(
        default_factory=dict, description="tool queries by the function that is wanted, read strictly"
    )
    by_category_lenient: dict[str, Rates] = Field(default_factory=dict, description="read in any dialect")
    by_tool_lenient: dict[str, Rates] = Field(default_factory=dict, description="the same by tool")
    timing: Timing


def as_json(value: Any, depth: int = 0) -> Any:
    """A JSON value in the form in which a file can hold it.

    What a model writes may be an integer of any length, half a surrogate pair or a thousand lists in
    each other: the first becomes text, the second is replaced, and what lies too deep is left out.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, bool) or not isinstance(value, int | dict | list | tuple):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if depth == DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {as_json(str(key)): as_json(item, depth + 1) for key, item in value.items()}
    return [as_json(item, depth + 1) for item in value]


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record as JSON, whole or not at all."""
    write_whole({path: encode_record(record)})


def encode_record(record: BaseModel) -> bytes:
    """A record as the JSON of a file."""
    return orjson.dumps(record.model_dump(mode="json"), option=orjson.OPT_INDENT_2) + b"\n"


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record. Raises StageError when the file is missing or not of this kind."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"no file {path}") from None
    except ValidationError as error:
        raise StageError(f"{path} is not valid{_explain(kind, error)}") from None


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    """Such as ` at n: use 1 or more`; another version comes before what it has brought with it."""
    if newer := [str(mistake["ctx"]["error"]) for mistake in error.errors() if _is_version(mistake["loc"])]:
        return f": {newer[0]}"
    problem = first_problem(error)
    place = f" at {'.'.join(map(str, problem.where))}" if problem.where else ""
    unknown = problem.kind == "extra_forbidden" and len(problem.where) == 1
    return f"{place}: {problem.reason}" + (f", use one of {', '.join(kind.model_fields)}" if unknown else "")


def _is_version(place: tuple[int | str, ...]) -> bool:
    return place[-1:] == ("schema_version",)


def write_lines(path: Path, records: list[R]) -> None:
    """Write records as JSON lines."""
    path.write_bytes(b"".join(orjson.dumps(r.model_dump(mode="json")) + b"\n" for r in records))


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """Read JSON lines, blank ones aside. Raises StageError naming the line that is not of this kind."""
    records = []
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except FileNotFoundError:
        raise StageError(f"no file {path}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise StageError(f"{path}:{number} is not valid{_explain(kind, error)}") from None
    return records


Answer = Literal["use small", "split", "stay with large", "inconclusive"]
Doubt = Literal["flawed set-up", "unaudited set-up", "too few queries", "no comparable reference"]


class SeedAnswer(Record):
    """What the verdict is about the same arm, trained with one of its seeds."""

    seed: int
    decision: Rate
    ratio: float | None
    point_answer: Answer | None
    supported_answer: Answer


class Verdict(Record):
    """What a report concludes; the ratio is the candidate's decision rate over the reference's."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    report: str = Field(description="the report's name, reports/NAME.md")
    candidate: str = Field(description="title of the small model")
    arm: str
    seed: int | None = Field(description="None where it was not published")
    reference: str | None = Field(description="title of the large model, None when nothing was comparable")
    reference_source: Literal["measured", "recorded"] | None
    suite: str = Field(description="the suite that decides: the comparable one with the most queries")
    suite_version: int
    suite_fingerprint: str = Field(description="of its queries and accepted calls")
    candidate_decision: Rate
    candidate_origin: str = Field("measured", description="of its replies: measured here, or from elsewhere")
    reference_decision: Rate | None
    reference_origin: str | None = Field(None, description="the same of the reference")
    ratio: float | None = Field(description="point estimate; None without a reference or when its rate is 0")
    ratio_low: float | None = Field(description="95 % score interval of the ratio, lower limit")
    ratio_high: float | None = Field(description="upper limit; None where there is none")
    point_answer: Answer | None = Field(description="the rule applied to the point estimate")
    supported_answer: Answer = Field(description="what the evidence supports")
    cause: Doubt | None = Field(description="why inconclusive, None for a clear answer")
    reasons: list[str] = Field(description="what led to the supported answer, one sentence each")
    queries_needed: int | None = Field(description="estimate, per model, where more queries would decide")
    queries_note: str = Field(description="how the estimate was made, or why there is none")
    seeds: list[SeedAnswer] = Field(
        default_factory=list, description="every seed of the arm on that suite, where there are several"
    )
    digest: str | None = Field(None, description="SHA-256 of the other fields, as the report wrote them")
