"""Flags of the command line: one for every option of a preset, and `--help` with the preset's values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from stages.core.preset import (
    COUNT_LIMIT,
    SECTIONS,
    Preset,
    flag_of,
    item_type,
    load_preset,
    option_choices,
    option_type,
    section_of,
)

SEED_LIMIT = 2**63  # below it MLX, NumPy and JSON take every seed


def whole_number(text: str) -> int:
    """The type of a flag that takes an int."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def count(text: str) -> int:
    """The type of a flag that takes a number of things, of another size than a seed."""
    if abs(value := whole_number(text)) >= COUNT_LIMIT:
        raise argparse.ArgumentTypeError(f"{text}: use a number below {COUNT_LIMIT}")
    return value


def number(text: str) -> float:
    """The type of a flag that takes a float."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def folder(text: str) -> Path:
    """The type of a flag that takes a folder; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("name a folder")
    return Path(text)


def comma_list(text: str) -> tuple[str, ...]:
    """The type of a flag that takes several texts: `a,b`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def list_reader(item: type) -> Callable[[str], tuple[Any, ...]]:
    """The type of a flag that takes several values of one type."""

    def read(text: str) -> tuple[Any, ...]:
        return tuple(_PARSERS[item](part) for part in comma_list(text))

    return read


def seed_list(text: str) -> tuple[int, ...]:
    """The type of a flag that takes several seeds: `0,1,2`."""
    seeds = tuple(whole_number(part) for part in comma_list(text))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: name each seed once, as in 0,1,2")
    if max(seeds) >= SEED_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r}: use seeds below 2**63")
    return seeds


_PARSERS: dict[type, Any] = {int: whole_number, float: number, str: str}
SINGLE_OPTIONS = {"convert_data": ("max_seq_length",)}  # of other sections; its card counts longer rows
ROW_FLAGS = ("valid_share", "tools", "dedup")
_METAVARS: dict[type, str] = {int: "N", float: "NUMBER", str: "TEXT", tuple: "A,B,…"}


def add_section(
    parser: argparse.ArgumentParser, section: str, options: Collection[str] | None = None
) -> None:
    """A flag for every option of a preset's section, or for some of them."""
    group = parser.add_argument_group(f"[{section}] of the preset")
    for name, info in SECTIONS[section].model_fields.items():
        if options is not None and name not in options:
            continue
        kind, choices = option_type(info.annotation), option_choices(info.annotation)
        help_text = f"{(info.description or '').replace('%', '%%')} (%(default)s)"
        if kind is bool:
            group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, help=help_text)
        else:
            reader = list_reader(item_type(info.annotation)) if kind is tuple else _PARSERS[kind]
            group.add_argument(
                flag_of(name),
                type=reader,
                choices=choices,
                metavar=None if choices else _METAVARS[kind],
                help=help_text,
            )


class ShowHelp(argparse.Action):
    """`--help`, with the values of the preset that a `--model` before it names."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(
            option_strings,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            nargs=0,
            help="show this and end; the values in brackets are those of smol, or of a --model before it",
        )

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        """Print the help and leave."""
        parser.set_defaults(**_shown_values(load_preset(namespace.model)))
        parser.print_help()
        parser.exit()


def _shown_values(preset: Preset) -> dict[str, str]:
    values = {k: v for section in SECTIONS for k, v in getattr(preset, section)} | {"arms": preset.arms}
    return {name: show_value(value) for name, value in values.items()}


def show_value(value: Any) -> str:
    """A value as it is typed behind its flag; yes or no for a switch."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "empty"
    return str(value)


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that decide which rows a conversion gives: ROW_FLAGS."""
    group = parser.add_argument_group("the rows")
    group.add_argument(
        "--valid-share",
        type=number,
        metavar="SHARE",
        help="where the data have no valid split: this share of the train rows (of small data perhaps "
        "another, since the rows with one question stay together); 0 does without, which train does not take",
    )
    group.add_argument(
        "--tools",
        metavar="FILE",
        help="the tools of all rows, a JSON list; an empty one: none but a row's own (default: a "
        "row's own, Code Mode's, or inferred)",
    )
    group.add_argument(
        "--dedup",
        action="store_true",
        help="leave out repeated rows, and training rows that another split has",
    )


def add_ask_again(parser: argparse.ArgumentParser) -> None:
    """The flag of eval and of a retest about kept replies."""
    group = parser.add_argument_group("kept replies")
    group.add_argument(
        "--ask-again",
        action="store_true",
        help="forget the replies that are kept and ask every query again; --force alone scores them anew",
    )


def option_words(name: str, value: object) -> list[str]:
    """What is typed to give an option a value."""
    flag = flag_of(name)
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return [f"{flag}={text}"]  # one word, since a text may begin with a dash


def sections_taken(stage: str) -> Collection[str]:
    """The sections of a preset all of whose options a stage's command line takes."""
    return SECTIONS if stage in ("audit", "retest_fair") else ("model", stage)


def is_taken(option: str, stage: str) -> bool:
    """Whether a stage's command line takes an option of a preset."""
    return section_of(option) in sections_taken(stage) or option in SINGLE_OPTIONS.get(stage, ())
