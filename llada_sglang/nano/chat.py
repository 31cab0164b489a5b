"""Chat form of nano: LLaDA2's role tags, as a jinja template and as the same thing in Python.

A turn is `<role>NAME</role>text<|role_end|>`. The assistant ends its turn with `<|role_end|>` and
fills the rest of the block with `<|endoftext|>`; both are EOS ids, as in LLaDA2.2. Tools are listed
in the system turn by signature (`get_weather(city)`), a short form of what the Ling family writes;
tool calls have the body that SGLang's `qwen25` tool-call parser reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
ROLE_END = "<|role_end|>"
CONTROL_TOKENS = (END_OF_TEXT, MASK, ROLE_END, "<role>", "</role>")
DELETE, SPLIT = "<|delete|>", "<|split|>"
EDIT_TOKENS = (DELETE, SPLIT)
TOOL_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

CHAT_TEMPLATE = """\
{%- set start = 1 if messages and messages[0].role == 'system' else 0 -%}
<role>SYSTEM</role>
{%- if start %}{{ messages[0].content + '\\n' }}{% endif -%}
{%- if tools %}{{ '# Tools\\n' }}
{%- for tool in tools %}
{%- set fn = tool.function if tool.function is defined else tool %}
{%- set properties = fn.parameters.properties if fn.parameters and fn.parameters.properties \
else {} %}
{{- fn.name + '(' + (properties | list | join(', ')) + ')\\n' }}
{%- endfor %}{% endif -%}
detailed thinking off<|role_end|>
{%- for message in messages[start:] %}
{%- if message.role == 'system' %}
{{- '<role>SYSTEM</role>' + message.content + '<|role_end|>' }}
{%- elif message.role == 'user' %}
{{- '<role>HUMAN</role>' + message.content + '<|role_end|>' }}
{%- elif message.role == 'assistant' %}
{{- '<role>ASSISTANT</role>' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- set fn = call.function if call.function is defined else call %}
{%- if message.content or not loop.first %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + fn.name + '", "arguments": ' }}
{{- fn.arguments if fn.arguments is string else fn.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|role_end|>' }}
{%- elif message.role == 'tool' %}
{{- '<role>OBSERVATION</role>\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|role_end|>' }}
{%- else %}
{{- raise_exception('unknown role: ' + message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif -%}
"""

_ROLES = {"user": "HUMAN", "assistant": "ASSISTANT"}


def render_prompt(
    messages: Iterable[Mapping[str, str]], tools: Iterable[Mapping[str, Any]] = ()
) -> str:
    """What CHAT_TEMPLATE gives for user and assistant turns, ready for the answer; much faster."""
    text = "<role>SYSTEM</role>"
    signatures = [
        f"{tool['function']['name']}({', '.join(tool['function']['parameters']['properties'])})\n"
        for tool in tools
    ]
    if signatures:
        text += "# Tools\n" + "".join(signatures)
    text += "detailed thinking off" + ROLE_END
    for message in messages:
        text += f"<role>{_ROLES[message['role']]}</role>{message['content']}{ROLE_END}"
    return text + "<role>ASSISTANT</role>"
