"""Rows in the legacy text: ChatML, and the tool calls of two dialects mixed."""

from __future__ import annotations

import json

from queries import Job

Turn = tuple[str, str]


def write_xml(code: str, prose: str, inline: bool) -> str:
    """An XML call, in the layout with or without line breaks between its tags."""
    between = "" if inline else "\n"
    call = (
        f"<tool_call><function=execute_code>{between}<parameter=code>\n{code}\n"
        f"</parameter>{between}</function></tool_call>"
    )
    return f"{prose}\n\n{call}" if prose else call


def write_bare(code: str) -> str:
    """The dialect that puts the code straight into the call."""
    return f"<tool_call>\n{code}\n</tool_call>"


def call_turns(job: Job, outputs: list[str] | None, answer: str, inline: bool) -> list[Turn]:
    """The query, each call and its response, the answer; without outputs the row ends at the call."""
    turns: list[Turn] = [("user", job.query)]
    for number, step in enumerate(job.steps):
        turns.append(("assistant", write_xml(step.code, job.prose if number == 0 else "", inline)))
        if outputs is None:
            return turns
        turns.append(("user", f"<tool_response>\n{outputs[number]}\n</tool_response>"))
    return [*turns, ("assistant", answer)]


def write_row(turns: list[Turn], system: str | None) -> str:
    """One JSON line. The legacy text has no newline after the last turn."""
    whole = ([("system", system)] if system else []) + turns
    text = "\n".join(f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in whole)
    return json.dumps({"text": text}, ensure_ascii=False)
