"""The `llada-sglang` command: demo, chat, doctor, roofline and bundle.

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
    if options.command == "roofline":
        from llada_sglang.cli import roofline

        return roofline.run(
            model=options.model,
            gpu=options.gpu,
            tp=options.tp,
            rows=options.rows,
            kv_len=options.kv_len,
            tpf=options.tpf,
            dtype=options.dtype,
            bandwidth=options.bandwidth,
            as_json=options.json,
        )
    if options.command == "bundle":
        from llada_sglang.cli import bundle

        return bundle.run(
            directory=options.directory,
            python=options.python_version,
            machine=options.machine,
            glibc=options.glibc,
            part_size=options.part_size,
            extra=options.extra,
            wheel=options.wheel,
            index_options=options.index_options,
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
    _add_roofline(commands)
    _add_bundle(commands)
    return parser


def _add_roofline(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    roofline = commands.add_parser(
        "roofline",
        help="compute the least time of a forward on a GPU, tokens/s and memory",
        description="Count bytes and operations of one forward, part by part, and the time they "
        "take at least on a GPU, from config.json and published numbers. Nothing is measured.",
    )
    roofline.add_argument(
        "--model", required=True, metavar="MODEL", help="mini, flash, a directory or a hub id"
    )
    roofline.add_argument("--gpu", required=True, help="h200, h100, b200 or a100")
    roofline.add_argument(
        "--tp", type=_integer(1), default=1, metavar="N", help="GPUs (default: %(default)s)"
    )
    roofline.add_argument(
        "--rows",
        type=_integer(1, 4096),
        default=1,
        metavar="R",
        help="block rows of the forward, and requests to predict for (default: %(default)s)",
    )
    roofline.add_argument(
        "--kv-len",
        type=_integer(0),
        default=1024,
        metavar="L",
        help="tokens of prefix each row reads (default: %(default)s)",
    )
    roofline.add_argument(
        "--tpf",
        type=float,
        nargs="+",
        metavar="T",
        help="tokens per forward to predict for (default: 1 2 3 5 8)",
    )
    roofline.add_argument(
        "--dtype",
        choices=("bf16", "fp8"),
        default="bf16",
        help="of the linear layers (default: %(default)s)",
    )
    roofline.add_argument(
        "--bandwidth", type=float, metavar="TB/s", help="memory bandwidth (default: published)"
    )
    roofline.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_bundle(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bundle = commands.add_parser(
        "bundle",
        help="collect everything to install on a host without a network",
        description="Collect the wheels of SGLang, all it needs and this package into DIR/wheels, "
        "and write them to DIR/bundle in parts, with checksums and an installer. Run again, it "
        "goes on where it stopped.",
    )
    bundle.add_argument("directory", metavar="DIR", help="where to write")
    bundle.add_argument(
        "--python-version",
        default="{}.{}".format(*sys.version_info[:2]),
        metavar="X.Y",
        help="Python of the host (default: %(default)s)",
    )
    bundle.add_argument(
        "--machine", default="x86_64", help="x86_64 or aarch64 (default: %(default)s)"
    )
    bundle.add_argument(
        "--glibc",
        default="2.34",
        metavar="2.N",
        help="oldest glibc to run on; SGLang needs 2.34 (default: %(default)s)",
    )
    bundle.add_argument(
        "--part-size",
        type=_size,
        default="1GiB",
        metavar="SIZE",
        help="largest part, such as 60MiB (default: %(default)s)",
    )
    bundle.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="another package to bring; may be repeated",
    )
    bundle.add_argument(
        "--wheel", metavar="FILE", help="wheel of this package (default: build it here)"
    )
    for option in ("--index-url", "--extra-index-url", "--find-links"):
        bundle.add_argument(
            option,
            dest="index_options",
            action="append",
            type=f"{option}={{}}".format,
            default=[],
            metavar="URL",
            help="as pip has it",
        )
    bundle.add_argument(
        "--no-index",
        dest="index_options",
        action="append_const",
        const="--no-index",
        help="only what --find-links brings",
    )


def _size(text: str) -> int:
    """An argparse type: bytes of a size of at least 1 MiB."""
    from llada_sglang.bundle.parts import parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size < 1 << 20:
        raise argparse.ArgumentTypeError(f"must be at least 1MiB, got {text!r}")
    return size


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
