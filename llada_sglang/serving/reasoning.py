"""The reasoning parser of the family, by the name that `serving.parsers` gives it."""

from __future__ import annotations

from typing import Any

from sglang.srt.parser.reasoning_parser import Qwen3Detector, ReasoningParser

from llada_sglang.serving.parsers import FAMILY


class OpenedReasoning(Qwen3Detector):
    """Believes a text only where it opens `<think>` itself.

    The family answers without thinking unless told to, and its template does not open the tag for
    the model. The host's parsers of that tag take every text for reasoning until it closes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "force_reasoning": False})
        self.reasoning_default = None


def register() -> None:
    """Let the host find the parser by its name. Safe to call again."""
    ReasoningParser.DetectorMap[FAMILY] = OpenedReasoning
