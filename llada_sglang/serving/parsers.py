"""Which of the host's parsers reads the tool calls and the reasoning of a checkpoint.

The Ling family, which LLaDA2 takes its chat form from, writes a tool call as JSON between
`<tool_call>` tags, later models as XML; what a checkpoint was trained on stands in its template.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llada_sglang.checkpoint import read_chat_template

FAMILY = "llada2"
"""Name of the parsers in `serving.tool_calls` and `serving.reasoning`."""


def tool_call_parser(template: str) -> str | None:
    """The name of the host's parser for the tool calls a chat template shows."""
    if "<tool_call>" not in template:
        return None
    return "ling3" if "<arg_key>" in template else FAMILY


def reasoning_parser(template: str) -> str | None:
    """The name of the parser for the reasoning a chat template shows."""
    return FAMILY if "<think>" in template else None


def choose(config: Any) -> dict[str, str]:
    """The parsers to declare: those that the user leaves open and the chat template shows.

    config: the host's view of the arguments.
    """
    template = _template(config)
    chosen = {
        "tool_call_parser": tool_call_parser(template),
        "reasoning_parser": reasoning_parser(template),
    }
    return {
        name: parser
        for name, parser in chosen.items()
        if parser is not None and getattr(config, name) is None
    }


def _template(config: Any) -> str:
    given = config.chat_template
    if given is not None:
        # A name stands for one of the host's own templates.
        file = Path(given)
        return file.read_text("utf-8") if file.is_file() else ""
    path = config.tokenizer_path or config.model_path
    return read_chat_template(path, revision=config.revision) or ""
