"""The tool-call parser of the family, by the name that `serving.parsers` gives it."""

from __future__ import annotations

import json
from typing import Any

from sglang.srt.function_call.core_types import StreamingParseResult, StructureInfo
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.function_call.qwen25_detector import Qwen25Detector
from xgrammar import StructuralTag

from llada_sglang.serving.parsers import FAMILY


class BlockToolCalls(Qwen25Detector):
    """Reads JSON between `<tool_call>` tags from chunks as long as blocks.

    The host's parser takes one step per chunk, the name first and the arguments with the next one,
    and skips what stands before a call: of a chunk that holds more it loses the rest.
    """

    _buffer: str

    def parse_streaming_increment(self, new_text: str, tools: list[Any]) -> StreamingParseResult:
        """Return all that the text so far completes, not only the next piece of it."""
        self._buffer += new_text
        whole = StreamingParseResult()
        if self.current_tool_id < 0 and (start := self._buffer.find(self.bot_token)) > 0:
            whole.normal_text, self._buffer = self._buffer[:start], self._buffer[start:]
        while True:
            state = (self._buffer, self.current_tool_id, self.current_tool_name_sent)
            more = super().parse_streaming_increment("", tools)
            whole.normal_text += more.normal_text
            whole.calls += more.calls
            if state == (self._buffer, self.current_tool_id, self.current_tool_name_sent):
                return whole

    def get_auto_tool_call_structural_tag(
        self, tools: Any = None, thinking_mode: bool = False, parallel_tool_calls: bool = True
    ) -> StructuralTag | None:
        """The grammar of a text that may call one tool; None where it may call several."""
        return None if parallel_tool_calls else self._tag(tools, "auto", parallel_tool_calls)

    def get_structural_tag(
        self,
        tools: Any = None,
        tool_choice: Any = "auto",
        thinking_mode: bool = False,
        parallel_tool_calls: bool = True,
    ) -> StructuralTag | None:
        """The grammar of a text that calls tools, of these only the named one if one is named.

        The host's own holds a call neither to the named tool nor to a single one.
        """
        return self._tag(tools, tool_choice, parallel_tool_calls)

    def _tag(self, tools: Any, tool_choice: Any, parallel: bool) -> StructuralTag | None:
        named = getattr(getattr(tool_choice, "function", None), "name", None)
        info = self.structure_info()
        tags = []
        for tool in tools or ():
            function = tool.function
            if named is not None and function.name != named:
                continue
            parts = info(function.name)
            schema = (function.parameters if function.strict else None) or {}
            content = {"type": "json_schema", "json_schema": schema}
            tags.append({"begin": parts.begin, "content": content, "end": parts.end})
        if not tags:
            return None
        chosen: dict[str, Any] = {"tags": tags, "stop_after_first": not parallel}
        if tool_choice == "auto":
            chosen |= {"type": "triggered_tags", "triggers": ["<tool_call>"]}
        else:
            chosen |= {"type": "tags_with_separator", "separator": "\n", "at_least_one": True}
        return StructuralTag.model_validate({"type": "structural_tag", "format": chosen})

    def structure_info(self) -> Any:
        """How a call begins and ends, to the space as the chat template writes it."""
        return lambda name: StructureInfo(
            begin=f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": ',
            end="}\n</tool_call>",
            trigger="<tool_call>",
        )


def register() -> None:
    """Let the host find the parser by its name. Safe to call again."""
    FunctionCallParser.ToolCallParserEnum[FAMILY] = BlockToolCalls
