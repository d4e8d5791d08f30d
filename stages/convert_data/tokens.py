"""How many tokens the rows have for the target, counted on a sample of what was written.

Needs the target's tokenizer and nothing else of the model; where it is not on this machine the card
says so, and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
from jinja2 import TemplateError

from stages.core.render import encode_texts, render_row
from stages.core.tokenizer import Tokenizer

SAMPLE = 2_000  # rows of a split that are counted; an even stride over more
_BATCH = 1 << 18  # characters that the tokenizer gets at once: it shares them between the cores


@dataclass(frozen=True)
class TokenStats:
    """Tokens of the rows of one split, as the target's own chat template writes them."""

    rows: int
    measured: int
    """Rows that were counted: all of them, or an even sample."""
    refused: int
    """Of these, rows that the template refuses."""
    mean: float
    p50: int
    p95: int
    longest: int
    limit: int
    """`max_seq_length` of the preset."""
    over: int
    """Measured rows with more tokens than the limit."""

    @property
    def over_share(self) -> float:
        """The share of the measured rows that is over the limit."""
        return self.over / self.measured if self.measured else 0.0


def count_tokens(
    files: Mapping[str, Sequence[Path]], tokenizer: Tokenizer, limit: int
) -> dict[str, TokenStats]:
    """The statistics of each split, given the files of its converted rows in their order."""
    return {split: _count_split(paths, tokenizer, limit) for split, paths in files.items()}


def _count_split(paths: Sequence[Path], tokenizer: Tokenizer, limit: int) -> TokenStats:
    rows = sum(count_lines(path) for path in paths)
    stride = max(1, -(-rows // SAMPLE))
    lengths: list[int] = []
    refused = filled = 0
    texts: list[str] = []
    for line in take_every(read_lines(paths), stride):
        try:
            texts.append(render_row(orjson.loads(line), tokenizer))
        except (TemplateError, TypeError, ValueError, KeyError):
            refused += 1
            continue
        filled += len(texts[-1])
        if filled >= _BATCH:
            lengths += map(len, encode_texts(texts, tokenizer))
            filled, texts = 0, []
    if texts:
        lengths += map(len, encode_texts(texts, tokenizer))
    counted = np.array(lengths or [0])
    p50, p95 = np.percentile(counted, [50, 95], method="higher")
    return TokenStats(
        rows=rows,
        measured=len(lengths) + refused,
        refused=refused,
        mean=round(float(counted.mean()), 1),
        p50=int(p50),
        p95=int(p95),
        longest=int(counted.max()),
        limit=limit,
        over=int((counted > limit).sum()),
    )


def read_lines(paths: Iterable[Path]) -> Iterator[bytes]:
    """The lines of several files as one."""
    for path in paths:
        with path.open("rb") as file:
            yield from file


def take_every(lines: Iterable[bytes], stride: int) -> Iterator[bytes]:
    """The first line and every one that is `stride` further on."""
    return islice(lines, 0, None, stride)


def count_lines(path: Path) -> int:
    """The number of lines in a file that ends with a newline."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
