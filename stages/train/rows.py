"""Rows as tokens, and the batches of a run: which rows each step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
from jinja2 import TemplateError

from stages.core.errors import StageError
from stages.core.render import Encoded, Turns, encode_row
from stages.core.splits import read_lines, split_files
from stages.core.tokenizer import Tokenizer
from stages.core.words import plural

BUCKET = 16  # batches whose rows are sorted by length together

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together, without the prefix that they begin with.

    `inputs` (B, T) follows the prefix, right-padded. `where` (M,) are flat positions in (B, T)
    whose next token is supervised, `targets` (M,) those tokens. `calls` (M,) numbers the turns with a
    call that a token belongs to, -1 for every other token. `tokens` counts the rows' own tokens, prefix
    included.
    """

    inputs: Ints
    where: Ints
    targets: Ints
    calls: Ints
    tokens: int

    def weights(self, call_weight: float) -> Floats:
        """What each token counts in the loss that is minimized, (M,): a call's `call_weight`, others 1."""
        return np.where(self.calls >= 0, np.float32(call_weight), np.float32(1))


def load_rows(folder: Path, split: str, tokenizer: Tokenizer, turns: Turns, limit: int) -> list[Encoded]:
    """Encode a split. Raises StageError for an unreadable, unsupervised or too long row."""
    rows: list[Encoded] = []
    too_long = []
    path = folder / f"{split}.jsonl"
    if not split_files(folder, split):
        share = " with --valid-share 0.1, which sets rows aside" if split == "valid" else ""
        raise StageError(f"no file {path}: run nox -s convert_data{share}, or give its folder with --data")
    for line in read_lines(folder, split):
        try:
            row = encode_row(orjson.loads(line.data), tokenizer, turns)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise StageError(
                f"{line.place} is not a converted row: run nox -s convert_data on this data"
            ) from None
        except (TemplateError, ValueError) as error:  # transformers checks the tools itself
            reason = " ".join(str(error).split())[:240]
            raise StageError(f"{line.place} is refused by the chat template: {reason}") from None
        if not any(row.supervised[1:]):
            raise StageError(f"{line.place} has no assistant's turn to learn from: remove the row")
        if len(row.tokens) > limit:
            too_long.append((line, len(row.tokens)))
        rows.append(row)
    if too_long:
        first, tokens = too_long[0]
        found = f"{plural(len(too_long), 'row')} {'is' if len(too_long) == 1 else 'are'}"
        raise StageError(
            f"{first.path}: {found} longer than {limit} tokens, the first in line "
            f"{first.number} ({tokens}): raise --max-seq-length or shorten them"
        )
    if not rows:
        what = "train on" if split == "train" else "validate with"
        raise StageError(f"{path} is empty: nothing to {what}")
    return rows


def spread(rows: Sequence[Encoded], count: int) -> list[Encoded]:
    """About evenly spaced rows, `count` of them at most; all for 0."""
    if not 0 < count < len(rows):
        return list(rows)
    return [rows[len(rows) * i // count] for i in range(count)]


@dataclass(frozen=True)
class BatchPlan:
    """Which rows step s (counted from 0) trains on; a function of the seed alone, so it resumes.

    Every epoch sees every row once: rows are shuffled, sorted by length inside buckets of a few
    batches so that little is padded, and the batches are shuffled again.
    """

    lengths: tuple[int, ...]
    batch_size: int
    seed: int

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, a smaller last one included."""
        return -(-len(self.lengths) // self.batch_size)

    def rows_of(self, step: int) -> list[int]:
        """Indices of the rows of one step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[position]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._cache:
            self._cache.clear()
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.lengths)).tolist()
            size, batches = self.batch_size * BUCKET, []
            for start in range(0, len(order), size):
                bucket = sorted(order[start : start + size], key=lambda row: self.lengths[row])
                batches += [bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)]
            self._cache[epoch] = [batches[i] for i in random.permutation(len(batches)).tolist()]
        return self._cache[epoch]

    @cached_property
    def _cache(self) -> dict[int, list[list[int]]]:
        return {}


def make_batch(rows: Sequence[Encoded], prefix: int) -> Batch:
    """Cut rows behind the `prefix` tokens that all of them begin with, and list what counts."""
    length = max(len(r.tokens) for r in rows) - prefix
    inputs = np.zeros((len(rows), length), np.int32)
    where, targets, calls, turns = [], [], [], 0
    for index, row in enumerate(rows):
        inputs[index, : len(row.tokens) - prefix] = row.tokens[prefix:]
        for position in range(prefix + 1, len(row.tokens)):
            if row.supervised[position]:
                where.append(index * length + position - 1 - prefix)
                targets.append(row.tokens[position])
                calls.append(row.calls[position] + turns if row.calls[position] >= 0 else -1)
        turns += max(row.calls) + 1
    return Batch(
        inputs=inputs,
        where=np.array(where, np.int32),
        targets=np.array(targets, np.int32),
        calls=np.array(calls, np.int32),
        tokens=sum(len(r.tokens) for r in rows),
    )
