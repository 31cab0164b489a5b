"""docs/requests.md lists every field a request may have, and a test that exists for each."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.entrypoints.engine import Engine
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
)
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from llada_sglang.serving import refusals

ROW = re.compile(r"^\| `(\w+)` \| (honoured|refused|no effect) \| (.+) \| (?:`(.+)`|-) \|$")

CLASSES: dict[str, list[str]] = {
    "GenerateReqInput": [f.name for f in fields(GenerateReqInput)],
    "SamplingParams": list(SamplingParams.__struct_fields__),
    "CompletionRequest": list(CompletionRequest.model_fields),
    "ChatCompletionRequest": list(ChatCompletionRequest.model_fields),
    "ResponsesRequest": list(ResponsesRequest.model_fields),
    "Engine.generate": list(inspect.signature(Engine.generate).parameters)[1:],
}
REFUSED = {
    "GenerateReqInput": refusals.GENERATE,
    "SamplingParams": refusals.SAMPLING,
    "CompletionRequest": refusals.COMPLETION,
    "ChatCompletionRequest": refusals.CHAT,
    "ResponsesRequest": refusals.RESPONSES,
}


@cache
def tables(repository: Path) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Class -> field -> status, remark, test."""
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    rows: dict[str, tuple[Any, ...]] = {}
    for line in (repository / "docs" / "requests.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            rows = found[line[3:].partition(":")[0]] = {}
        elif match := ROW.match(line):
            assert match[1] not in rows, f"{match[1]} stands twice"
            rows[match[1]] = match.groups()[1:]
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_the_table_has_every_field_of_the_host_and_no_other(repository: Path, name: str) -> None:
    assert sorted(tables(repository)[name]) == sorted(CLASSES[name])


@pytest.mark.parametrize("name", CLASSES)
def test_a_row_names_a_test_or_says_why_there_is_no_effect(repository: Path, name: str) -> None:
    for field, (status, remark, test) in tables(repository)[name].items():
        if status == "no effect":
            assert remark != "-", f"{field}: say why it has no effect"
            continue
        assert test, f"{field} is {status}: name the test that proves it"
        file, _, function = test.partition("::")
        tree = ast.parse((repository / "tests" / file).read_text("utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in names, f"{field}: tests/{file} has no {function}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_documented_as_refused(repository: Path, name: str) -> None:
    rows = tables(repository)[name]
    for refusal in REFUSED[name]:
        assert refusal.name in CLASSES[name]
        assert rows[refusal.name][0] == "refused"
