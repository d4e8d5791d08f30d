"""Failures of a server that are a reply: its parser could not read the call that the model wrote.

Some servers then answer with an error that says so (Ollama, llama-server and LM Studio with status 500, vLLM
with 400), some let the connection drop (mlx_lm.server, where a call has no arguments). Such a failure comes
again however often the question is asked, and it says something about the model and nothing about the server.
It is told from a fault of the server or the set-up by asking on, with the server as it is at that moment:

- It is one that a parser can cause: an error that speaks of reading a call, or one that says nothing of
  another reason, namely status 500 or a connection that broke off, at every try.
- The same prompt is answered with one token, by the right model. So address, key, model and prompt are well.
- Where the failure does not speak of reading a call, a question of another kind is answered too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from stages.eval.engines import Question, Sampling
from stages.eval.engines.transport import BrokenOff, ServerError

OTHER = Question("other", {"messages": [{"role": "user", "content": "How are you?"}]})
SHORT = 16  # tokens of an answer to it
_OTHER_REASON = re.compile(
    r"memory|alloc|overload|capacity|busy|loading|time[d ]*out|cuda|metal", re.IGNORECASE
)


def list_controls(
    error: ServerError, question: Question, sampling: Sampling
) -> Sequence[tuple[Question, Sampling]]:
    """What has to be answered for a failure to count as the model's reply; empty where it never does."""
    one_token = question, replace(sampling, max_tokens=1)
    if error.unread:
        return [one_token]
    says_nothing = error.status == 500 and not _OTHER_REASON.search(error.said)
    if says_nothing or isinstance(error, BrokenOff):
        return [one_token, (OTHER, replace(sampling, max_tokens=SHORT))]
    return []
