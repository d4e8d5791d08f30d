"""Checks of the converted rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from stages.audit.probe import find_string_fate, render_messages
from stages.audit.registry import Issue, check
from stages.audit.rows import CALLABLE, EXAMPLES, Row, cite, list_lines, tally
from stages.audit.subject import Subject
from stages.core.chat import Conversation, Message
from stages.core.dialects import parse_any
from stages.core.likeness import normalise
from stages.core.splits import SPLITS

RESULT_TAG = "<tool_response>"  # 1 token in Qwen3, the source of the legacy data; 4 in Qwen2.5
_RESULT = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_ENCODED_TWICE = re.compile(r'"arguments":\s*"\{')
_OPENINGS = {
    "hermes": "<tool_call>",
    "qwen3_coder": "<function=",
    "bare_python": "<tool_call>",
    "pythonic": "[",
    "fenced_json": "```",
}
UNDEFINED_SHARE = 0.02  # of the rows: more of them are no slip
CONVERT = "convert the data with the fix json"


@check("data", flaw=1)
def result_tags_as_text(subject: Subject) -> Issue | None:
    """Results in tags that are one token for the source model, several for the target, and that the
    target's template did not write. What it writes itself as plain text does no harm."""
    pieces = subject.pieces(RESULT_TAG)
    tagged = [row for row in subject.rows if holds_result_tag(row)]
    if not tagged or pieces == 1:
        return None
    foreign = [row for row in tagged if not follows_template(row, subject)]
    found = tally(foreign or tagged, subject.rows)
    text = f"{found.words} hold {RESULT_TAG} as text, {pieces} tokens here and 1 in Qwen3"
    if not foreign:
        text = f"{text}; the template writes such results the same way"
        return Issue("info", text, found.count, found.total, "nothing to do")
    return Issue(
        "critical",
        f"{text}; the target's template writes these exchanges otherwise",
        found.count,
        found.total,
        f"{CONVERT}: results become tool turns that the target's template writes",
        cite(foreign, RESULT_TAG),
    )


def holds_result_tag(row: Row) -> bool:
    """Whether a turn that is not the assistant's has the tag in its own text."""
    return any(RESULT_TAG in turn.text for turn in row.turns if turn.role != "assistant")


def follows_template(row: Row, subject: Subject) -> bool:
    """Whether the target's template would write the row's calls and results byte for byte so."""
    messages: list[Message] = []
    for turn in row.turns:
        if turn.role == "assistant":
            reply = parse_any(turn.text, CALLABLE)
            messages.append(Message("assistant", reply.content, tuple(reply.calls)))
        elif results := _RESULT.findall(turn.text):
            messages += [Message("tool", result) for result in results]
        else:
            messages.append(Message("system" if turn.role == "system" else "user", turn.text))
    written = render_messages(subject.tokenizer, Conversation(tuple(messages)).to_row()["messages"])
    return written is not None and all(turn.text in written for turn in row.turns)


@check("data", flaw=2)
def foreign_dialect(subject: Subject) -> Issue | None:
    """Calls in another dialect than the target's."""
    target = subject.setup.dialect
    rows = [row for row in subject.rows if any(dialect != target for dialect in row.dialects)]
    if not rows:
        return None
    found = tally(rows, subject.rows)
    split = rows[0].split
    counts = Counter(d for row in rows if row.split == split for d in row.dialects if d != target)
    written = ", ".join(f"{count} {dialect}" for dialect, count in counts.most_common())
    return Issue(
        "critical",
        f"{found.words} call tools in another dialect than the target's {target}: {written}",
        found.count,
        found.total,
        f"{CONVERT}: every call is then written as the target's template writes it",
        tuple(
            line
            for name in counts
            for line in cite([row for row in rows if name in row.dialects][:1], _OPENINGS[name])
        ),
    )


@check("data", flaw=3)
def mixed_dialects(subject: Subject) -> Issue | None:
    """Several dialects in one data set."""
    calling = [row for row in subject.rows if row.dialects]
    counts = Counter(dialect for row in calling for dialect in row.dialects)
    if len(counts) < 2:
        return None
    main, *others = (dialect for dialect, _ in counts.most_common())
    odd = [row for row in calling if set(row.dialects) - {main}]
    found = tally(odd, calling)
    shares = Counter(dialect for row in calling if row.split == odd[0].split for dialect in row.dialects)
    return Issue(
        "critical",
        f"{len(counts)} dialects are mixed: {', '.join(f'{n} {d}' for d, n in shares.most_common())} "
        f"in {odd[0].split}; {found.words} with calls are not in {main}",
        found.count,
        found.total,
        f"{CONVERT}: one dialect in all rows",
        tuple(f"{dialect}: {lines}" for dialect in others for lines in _lines_by_split(odd, dialect)),
    )


def _lines_by_split(rows: list[Row], dialect: str) -> Iterator[str]:
    for split in SPLITS:
        if concerned := [row for row in rows if row.split == split and dialect in row.dialects]:
            yield list_lines(concerned)


@check("data", flaw=4)
def rows_without_tools(subject: Subject) -> Issue | None:
    """Rows whose prompt defines no tool, in data that calls some."""
    bare = [
        row
        for row in subject.rows
        if not row.data.get("tools") and not names_tool(row.system or "", subject.called)
    ]
    if not bare or not subject.called:
        return None
    found = tally(bare, subject.rows)
    return Issue(
        "critical",
        f"{found.words} define no tool, and the data calls {', '.join(sorted(subject.called)[:EXAMPLES])}",
        found.count,
        found.total,
        "convert the data with the fix tools: every row then shows the tools that evaluation shows",
        cite(bare),
    )


def names_tool(text: str, names: Collection[str]) -> bool:
    """Whether a text has one of the names as a word of its own: `run` is not in `running`."""
    return any(name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)


@check("data")
def undefined_calls(subject: Subject) -> Issue | None:
    """Calls of tools that the row's own prompt does not define: they teach to make tools up."""
    made_up = {row.place: names for row in subject.rows if (names := find_undefined(row))}
    if not made_up:
        return None
    rows = [row for row in subject.rows if row.place in made_up]
    found = tally(rows, subject.rows)
    names = sorted(set().union(*made_up.values()))
    return Issue(
        "critical" if found.count > UNDEFINED_SHARE * found.total else "warning",
        f"{found.words} call tools that their prompt does not define, {', '.join(names[:EXAMPLES])}",
        found.count,
        found.total,
        "define these tools in the rows, or give all tools to convert_data with --tools",
        tuple(f"{row.place}: {', '.join(made_up[row.place])}" for row in rows[:EXAMPLES]),
    )


def find_undefined(row: Row) -> list[str]:
    """The tools that a row calls without defining them, where it defines any."""
    tools = row.data.get("tools")
    given = [tool for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    functions = [f if isinstance(f := tool.get("function"), Mapping) else tool for tool in given]
    defined = {name for function in functions if isinstance(name := function.get("name"), str)}
    called = {call.name for reply in row.replies for call in reply.calls}
    return sorted(called - defined) if defined else []


@check("data")
def string_arguments(subject: Subject) -> Issue | None:
    """Arguments as JSON strings where objects are expected (OpenAI's own shape)."""
    rows = [row for row in subject.rows if has_string_arguments(row)]
    if not rows:
        return None
    fate = find_string_fate(subject.tokenizer)
    written = any(_ENCODED_TWICE.search(row.text) for row in rows)
    harmful = fate != "kept" or written
    found = tally(rows, subject.rows)
    return Issue(
        "critical" if harmful else "warning",
        f"{found.words} carry arguments as a JSON string"
        + (f", which the target's template {_FATES[fate]}" if fate != "kept" else "")
        + ("; the trained text holds them encoded twice" if written else ""),
        found.count,
        found.total,
        "give arguments as objects",
        cite(rows, '"arguments"'),
    )


_FATES = {"encoded twice": "encodes a second time", "lost": "leaves out", "refused": "refuses"}


def has_string_arguments(row: Row) -> bool:
    """Whether a structured call, or the text that is trained, has a string where the object belongs."""
    calls = [call for m in row.data.get("messages", ()) for call in m.get("tool_calls") or ()]
    given = any(isinstance(call.get("function", call).get("arguments"), str) for call in calls)
    return given or _ENCODED_TWICE.search(row.text) is not None


@check("data")
def shared_questions(subject: Subject) -> Issue | None:
    """The same question in training and in another split."""
    trained = {normalise(row.question): row for row in subject.train if row.question}
    rows = [row for row in subject.rows if row.split != "train" and normalise(row.question) in trained]
    if not rows:
        return None
    found = tally(rows, [row for row in subject.rows if row.split != "train"])
    # No step is taken and no adapter chosen by these losses; queries_in_training guards the verdict.
    return Issue(
        "warning",
        f"{found.words} ask a question that training has too: their loss looks better than it is",
        found.count,
        found.total,
        "keep each question in one split, and read the validation loss with care until then",
        tuple(pair_up(row, trained[normalise(row.question)]) for row in rows[:EXAMPLES]),
    )


@check("data")
def duplicate_rows(subject: Subject) -> Issue | None:
    """Training rows that repeat an earlier one."""
    first: dict[str, Row] = {}
    repeats = []
    for row in subject.train:
        earlier = first.setdefault(normalise(row.text) or row.place, row)
        if earlier is not row:
            repeats.append((row, earlier))
    if not repeats:
        return None
    return Issue(
        "warning",
        f"{len(repeats)} of {len(subject.train)} training rows repeat an earlier one",
        len(repeats),
        len(subject.train),
        "remove the repeats, or mean them: they count double in the loss",
        tuple(pair_up(row, earlier) for row, earlier in repeats[:EXAMPLES]),
    )


def pair_up(row: Row, earlier: Row) -> str:
    """Two rows with the same question, as an example."""
    return f"{row.place} = {earlier.place}: {row.question[:60]}"


@check("data")
def system_message_varies(subject: Subject) -> Issue | None:
    """A system turn that is missing or another one in a share of the rows."""
    counts = Counter(row.system for row in subject.rows)
    usual = counts.most_common(1)[0][0]
    odd = [row for row in subject.rows if row.system != usual]
    if not odd:
        return None
    found = tally(odd, subject.rows)
    missing = sum(row.system is None for row in odd if row.split == odd[0].split)
    return Issue(
        "warning",
        f"{found.words} differ from the usual system turn ({quote(usual)}): {missing} have none, "
        f"{found.count - missing} another text",
        found.count,
        found.total,
        "convert the data with the fix tools: every row gets the system turn of the evaluation",
        tuple(f"{row.place}: {quote(row.system)}" for row in _one_each(odd)),
    )


def quote(text: str | None) -> str:
    """The beginning of a system text, or `none`."""
    return "none" if text is None else repr(text[:60])


def _one_each(rows: list[Row]) -> list[Row]:
    """One row for each system text, the first few."""
    return list({row.system: row for row in reversed(rows)}.values())[::-1][:EXAMPLES]


@check("data")
def rows_without_assistant(subject: Subject) -> Issue | None:
    """Rows in which nothing is learned."""
    rows = [row for row in subject.rows if not row.refused and row.last_trained is None]
    if not rows:
        return None
    found = tally(rows, subject.rows)
    opening = subject.turns.opening.strip().replace("\n", "⏎")
    return Issue(
        "critical",
        f"{found.words} have no assistant's turn as the target's template opens one ({opening}): "
        "training refuses them",
        found.count,
        found.total,
        "remove the rows, or convert them with the fix json if they are in another chat format",
        cite(rows),
    )


@check("data")
def unended_turns(subject: Subject) -> Issue | None:
    """Rows whose last supervised token does not end the turn."""
    rows = [row for row in subject.rows if row.last_trained not in (None, *subject.turn_ends)]
    if not rows:
        return None
    found = tally(rows, subject.rows)
    return Issue(
        "critical" if 2 * found.count > found.total else "warning",
        f"{found.words} do not end with {subject.show(subject.turn_ends)}: they teach not to stop",
        found.count,
        found.total,
        "end every assistant's turn with the template's end mark, and cut no row",
        tuple(f"{row.place}: …{row.text[-60:]}".replace("\n", "⏎") for row in rows[:EXAMPLES]),
    )


@check("data")
def rows_too_long(subject: Subject) -> Issue | None:
    """Rows with more tokens than training takes."""
    limit = subject.preset.train.max_seq_length
    rows = [row for row in subject.rows if len(row.encoded.tokens) > limit]
    if not rows:
        return None
    found = tally(rows, subject.rows)
    longest = max(len(row.encoded.tokens) for row in rows)
    return Issue(
        "warning",
        f"{found.words} are longer than max_seq_length {limit}, the longest has {longest} tokens",
        found.count,
        found.total,
        f"--max-seq-length {longest}, or shorten the rows: training refuses them, others cut their end off",
        tuple(f"{row.place}: {len(row.encoded.tokens)} tokens" for row in rows[:EXAMPLES]),
    )


@check("data")
def malformed_calls(subject: Subject) -> Issue | None:
    """Turns with a call that reads only with forgiveness, or not at all."""
    rows = [row for row in subject.rows if any(reply.problems for reply in row.replies)]
    if not rows:
        return None
    found = tally(rows, subject.rows)
    problems = [next(p for reply in row.replies for p in reply.problems) for row in rows[:EXAMPLES]]
    return Issue(
        "warning",
        f"{found.words} hold a malformed call, and teach it",
        found.count,
        found.total,
        "repair or remove the rows",
        tuple(f"{row.place}: {problem[:120]}" for row, problem in zip(rows, problems, strict=False)),
    )
