"""Control tokens of models within texts: those that end a turn, and those that a tokenizer would obey.

Data that were generated often keep the token at which the generation stopped. At the very end of an answer
it says nothing more than that the turn ends, which the target's template writes itself.
"""

from __future__ import annotations

import re

TURN_ENDED = "an end-of-turn token at the end of an answer"

_ENDS = (
    *("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|eot|>"),
    *("<end_of_turn>", "<｜end▁of▁sentence｜>", "</s>"),
)
_EOS = _ENDS[-1]
_STRUCK = "<s>"  # opens what `</s>` closes in HTML
# No name of a tool or of a language is among them: those of calls are the dialects' matter.
_CONTROL = re.compile(
    rb"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text"
    rb"|end_of_text|header_start|header_end|eot|end|user|assistant|system|start_of_role|end_of_role)\|>"
)


def cut_end_tokens(text: str) -> str:
    """An answer without the end-of-turn tokens that it ends with and the white space beside them."""
    left = text.rstrip()
    if not left.endswith(_ENDS):
        return text
    # A generation that did not stop may end in thousands of them: the text is cut once.
    end, struck = len(left), left.find(_STRUCK)
    while left.endswith(_ENDS, 0, end):
        token = next(token for token in _ENDS if left.endswith(token, 0, end))
        if token == _EOS and -1 < struck < end:
            break
        end -= len(token)
        while end and left[end - 1].isspace():
            end -= 1
    return left[:end] if end < len(left) else text


def find_controls(*written: bytes) -> tuple[str, ...]:
    """The control tokens in turns as JSON, each once, in the order of the alphabet."""
    found = {token for text in written if b"<|" in text for token in _CONTROL.findall(text)}
    return tuple(sorted(token.decode() for token in found)) if found else ()
