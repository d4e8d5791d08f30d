"""Checks of the chat template."""

from __future__ import annotations

from typing import Any

from stages.audit.probe import find_dialect, find_dropped, find_string_fate
from stages.audit.registry import Issue, check
from stages.audit.rows import EXAMPLES, Row, cite, tally
from stages.audit.subject import JINJA, TOKENIZER_CONFIG, Subject
from stages.core.prompts import offered_tools

OTHER_TEMPLATE = "name a template that has tools, such as --chat-template chatml_hermes"


@check("template")
def template_drops_tools(subject: Subject) -> Issue | None:
    """A template that leaves out tool definitions, calls or results without a word."""
    dropped = find_dropped(subject.tokenizer)
    if not dropped:
        return None
    used = uses_template_for_tools(subject)
    return Issue(
        "critical" if used else "warning",
        f"the chat template in use drops {' and '.join(dropped)}"
        + ("" if used else "; this arm's rows and prompts hold none of them apart from their text"),
        len(dropped),
        3,
        OTHER_TEMPLATE,
    )


def uses_template_for_tools(subject: Subject) -> bool:
    """Whether anything of this arm needs a template that can write tools."""
    needed = any(row.data.get("tools") or structured_calls(row) for row in subject.rows)
    return needed or bool(offered_tools(subject.fixes))


@check("template")
def own_template_drops_tools(subject: Subject) -> Issue | None:
    """The model's own template drops tools, and the preset replaces it."""
    own = subject.base.own_template
    if subject.setup.chat_template == "own" or own is None:
        return None
    dropped = find_dropped(subject.tokenizer, own)
    if not dropped:
        return None
    return Issue(
        "info",
        f"the model's own template drops {' and '.join(dropped)}; "
        f"{subject.setup.chat_template} takes its place",
        len(dropped),
        3,
        "serve the model with the template that it was trained with",
    )


@check("template")
def template_dialect_differs(subject: Subject) -> Issue | None:
    """A template that writes calls in another dialect than the preset says."""
    written, named = find_dialect(subject.tokenizer), subject.setup.dialect
    if written in (None, named):
        return None
    return Issue(
        "critical",
        f"the chat template writes calls as {written}, the preset says {named}",
        1,
        1,
        f"--dialect {written}, or another --chat-template",
    )


@check("template")
def template_refuses_rows(subject: Subject) -> Issue | None:
    """Rows that the template raises an error for."""
    rows = [row for row in subject.rows if row.refused]
    if not rows:
        return None
    found = tally(rows, subject.rows)
    return Issue(
        "critical",
        f"the chat template refuses {found.words}",
        found.count,
        found.total,
        "bring the rows into the order and form that the template takes, or name another --chat-template",
        tuple(f"{row.place}: {row.refused[:120]}" for row in rows[:EXAMPLES]),
    )


@check("template")
def calls_changed_by_template(subject: Subject) -> Issue | None:
    """Structured calls that do not read back from the trained text as they are in the row."""
    if "calls" in find_dropped(subject.tokenizer):
        return None  # template_drops_tools says it
    taken = [row for row in subject.rows if not row.refused and structured_calls(row)]
    rows = [row for row in taken if structured_calls(row) != written_calls(row)]
    if not rows:
        return None
    found = tally(rows, subject.rows)
    return Issue(
        "critical",
        f"the calls of {found.words} do not read back from the trained text as they are",
        found.count,
        found.total,
        "name a --chat-template that writes the calls whole, and give arguments as objects",
        cite(rows, "<tool_call>"),
    )


def structured_calls(row: Row) -> list[tuple[str, Any]]:
    """Name and arguments of the calls that stand in the row as data."""
    calls = [call for m in row.data.get("messages", ()) for call in m.get("tool_calls") or ()]
    functions = [call.get("function", call) for call in calls]
    return [(function.get("name", ""), function.get("arguments")) for function in functions]


def written_calls(row: Row) -> list[tuple[str, Any]]:
    """Name and arguments of the calls in the trained text."""
    return [(call.name, call.arguments) for reply in row.replies for call in reply.calls]


@check("template")
def template_encodes_strings(subject: Subject) -> Issue | None:
    """A template that encodes string arguments once more: worth knowing for whoever serves the model."""
    if "calls" in find_dropped(subject.tokenizer) or (fate := find_string_fate(subject.tokenizer)) == "kept":
        return None
    return Issue(
        "info",
        f"arguments that come as a JSON string, as OpenAI's own API has them, are {fate} by the template",
        1,
        1,
        "give arguments as objects, in data and when serving",
    )


@check("template")
def templates_differ(subject: Subject) -> Issue | None:
    """Two different templates in the model's two files, of which different programs take one each."""
    texts = subject.base.templates
    if len({text.strip() for text in texts.values()}) < 2 or subject.setup.chat_template != "own":
        return None
    return Issue(
        "warning",
        f"{JINJA} and {TOKENIZER_CONFIG} hold different chat templates; {JINJA} is used",
        2,
        2,
        f"remove the one that is wrong, or name the right one with --chat-template FOLDER/{JINJA}",
    )
