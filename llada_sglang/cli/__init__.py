"""The `llada-sglang` command: demo, chat and doctor.

Only the parser lives here, so that `--help` is instant; each command is imported when it runs.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from llada_sglang import __version__
from llada_sglang.errors import LLaDAError

INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done. 1: something is wrong, said in one message. 2: the arguments are not understood.
    130: interrupted.
    """
    options = _parser().parse_args(arguments)
    _leave_on_signals()
    try:
        return _run(options)
    except LLaDAError as error:
        print(f"llada-sglang: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nllada-sglang: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has left; keep the interpreter from failing on its last flush.
        sys.stdout = None  # type: ignore[assignment]
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == "demo":
        from llada_sglang.cli import demo

        return demo.run(model=options.model, port=options.port)
    if options.command == "chat":
        from llada_sglang.cli import chat

        return chat.run(
            model=options.model,
            url=options.url,
            max_tokens=options.max_tokens,
            threshold=options.threshold,
        )
    from llada_sglang.cli import doctor

    return doctor.run(model=options.model, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llada-sglang",
        description="Serve and check LLaDA2 diffusion language models on SGLang.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="start a server, ask it ten questions, show its speed, stop it",
        description="Start an SGLang server on the checkpoint of this package (or another), put "
        "ten questions to it through the openai client, streaming, and stop it.",
    )
    _add_model(demo)
    demo.add_argument(
        "--port", type=_integer(1, 65535), help="port of the server (default: a free one)"
    )

    chat = commands.add_parser(
        "chat",
        help="talk to a model in the terminal",
        description="Talk to a model, streaming, with its whole history. /reset forgets the "
        "history; /quit, Ctrl-D and Ctrl-C leave.",
    )
    target = chat.add_mutually_exclusive_group()
    _add_model(target)
    target.add_argument("--url", help="a running SGLang server, instead of starting one")
    chat.add_argument(
        "--max-tokens",
        type=_integer(1),
        default=1024,
        metavar="N",
        help="longest answer in tokens (default: %(default)s)",
    )
    chat.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="confidence in (0, 1] above which a position is unmasked (default: the server's)",
    )

    doctor = commands.add_parser(
        "doctor",
        help="say what is installed, what is supported, what is wrong and how to mend it",
        description="Check the host, the device, the plugin and, with --model, a checkpoint. "
        "Exit status 1 if something is wrong.",
    )
    doctor.add_argument("--model", metavar="DIR", help="also check this checkpoint")
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _add_model(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="checkpoint directory or hub id (default: the small one of this package)",
    )


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""

    def parse(text: str) -> int:
        allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be an integer {allowed}, got {text!r}")
        return value

    return parse


def _leave_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into SystemExit, so that every `finally` runs, as for Ctrl-C."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
