"""What a user may ask of an evaluation beside the common options: another engine, or a comparison."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from stages.core.cli import Options
from stages.core.errors import StageError
from stages.core.flags import add_ask_again, count, folder, number


@dataclass(frozen=True)
class Request:
    """Which engine answers: a model in this process unless a server or a file is named."""

    endpoint: str | None = None
    """Address of a server that speaks OpenAI's chat completions."""
    served_model: str | None = None
    """The model's name there; None: the only one that it serves."""
    concurrency: int = 4
    """Requests at the same time."""
    timeout: float = 600.0
    """Seconds that the server may take to answer one request."""
    replies: Path | None = None
    """A JSONL file of replies to score."""
    ask_again: bool = False
    """Whether kept replies are forgotten and every query is asked again."""
    compare: tuple[Path, ...] = ()
    """Outputs of eval to lay beside each other; nothing is evaluated."""

    @property
    def local(self) -> bool:
        """Whether a model in this process answers."""
        return self.endpoint is None and self.replies is None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Request`."""
    group = parser.add_argument_group("other engines")
    group.add_argument(
        "--endpoint",
        metavar="URL",
        help="ask a server that speaks OpenAI's chat completions, such as http://127.0.0.1:8080/v1; "
        "a key for it goes into FAIR_RETEST_API_KEY",
    )
    group.add_argument(
        "--served-model",
        metavar="NAME",
        help="the model's name there (default: the only one it lists); "
        "of mlx_lm.server the folder given to its --model",
    )
    group.add_argument(
        "--concurrency",
        type=count,
        metavar="N",
        help=f"requests at the same time (default: {Request.concurrency})",
    )
    group.add_argument(
        "--timeout",
        type=number,
        metavar="SECONDS",
        help=f"for the answer to one request (default: {Request.timeout:g})",
    )
    group.add_argument(
        "--replies", type=Path, metavar="FILE", help="score these replies: JSON lines with id and text"
    )
    add_ask_again(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--compare",
        type=folder,
        nargs="+",
        default=(),
        metavar="FOLDER",
        help="only show where the replies in two or more outputs of eval differ",
    )


def read_request(args: argparse.Namespace, options: Options) -> Request:
    """The parsed flags. Raises StageError for options that exclude each other."""
    request = Request(
        endpoint=args.endpoint,
        served_model=args.served_model,
        concurrency=Request.concurrency if args.concurrency is None else args.concurrency,
        timeout=Request.timeout if args.timeout is None else args.timeout,
        replies=args.replies,
        ask_again=args.ask_again,
        compare=tuple(args.compare),
    )
    engines = {"--endpoint": request.endpoint, "--replies": request.replies, "--compare": request.compare}
    given = [flag for flag, value in engines.items() if value]
    if len(given) > 1:
        raise StageError(f"{' and '.join(given)} exclude each other: give one")
    if given and options.data is not None:
        raise StageError(f"{given[0]} asks no model folder: leave --data out")
    if request.ask_again and (request.replies is not None or request.compare):
        raise StageError(f"--ask-again asks a model, and {given[0]} has none: leave it out")
    for flag in ("served_model", "concurrency", "timeout"):
        if getattr(args, flag) is not None and request.endpoint is None:
            raise StageError(f"--{flag.replace('_', '-')} is for a server: give its address with --endpoint")
    if request.concurrency < 1:
        raise StageError(f"--concurrency {request.concurrency}: use 1 or more")
    if not 0 < request.timeout < float("inf"):
        raise StageError(f"--timeout {request.timeout:g}: use a number above 0")
    if len(request.compare) == 1:
        raise StageError("--compare lays two or more outputs beside each other: name another one")
    _check_setup(request, options)
    return request


def _check_setup(request: Request, options: Options) -> None:
    """Raise StageError for a set-up that the engine cannot serve."""
    setup = options.preset.eval
    if setup.stop_at_call and not request.local:
        raise StageError("--stop-at-call works on a model in this process alone: leave it out")
    if request.replies is not None and len(setup.suites) > 1:
        raise StageError(f"--replies {request.replies} answers one suite: name it with --suites")
    if request.replies is not None and setup.is_sweep:
        raise StageError("recorded replies are what they are: leave --temperature, --samples, --prompts out")
