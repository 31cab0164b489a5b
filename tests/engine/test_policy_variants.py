"""Checkpoints made for editing and for lookahead, served over HTTP with no flag but the dtype."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from oracle import Oracle
from policy_cases import EDITING, LEVENSHTEIN, UNMASKING, reference
from servers import Server, ServerPool, ServerSpec
from tokenizers import Tokenizer

from llada_sglang.nano import tasks
from llada_sglang.nano.chat import render_prompt

OWN: dict[str, tuple[dict[str, Any], ...]] = {
    "checkpoint_edit": EDITING,
    "checkpoint_levenshtein": LEVENSHTEIN,
    "checkpoint_lookahead": UNMASKING[:4],
}
DEFAULT = {
    "checkpoint_edit": {"policy": "edit"},
    "checkpoint_levenshtein": {"policy": "levenshtein"},
    "checkpoint_lookahead": {"policy": "threshold"},
}


class Variant:
    """A running server and the reference of one checkpoint."""

    def __init__(self, name: str, directory: Path, server: Server) -> None:
        self.name, self.server = name, server
        self.oracle = Oracle(directory)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

    def prompt(self, seed: int) -> list[int]:
        (example,) = tasks.examples(seed, tasks.FAMILIES[seed % 10], "eval", 1)
        text = render_prompt(example.messages, example.tools)
        return list(self.tokenizer.encode(text).ids)


@pytest.fixture(scope="module", params=sorted(OWN))
def variant(request: pytest.FixtureRequest, nano: Path, servers: ServerPool) -> Variant:
    directory = nano.parent / request.param
    server = servers.get(ServerSpec(str(directory), ("--dtype", "float32")))
    return Variant(request.param, directory, server)


def test_sixteen_at_once_of_all_policies_equal_the_reference(variant: Variant) -> None:
    own = OWN[variant.name]
    cases = [*own, *own, *(UNMASKING + EDITING)[::2], *own]
    asked = [(variant.prompt(i), case) for i, case in enumerate(cases)]

    def ask(question: tuple[list[int], dict[str, Any]]) -> dict[str, Any]:
        prompt, case = question
        return variant.server.generate(prompt, max_new_tokens=80, sampling={"custom_params": case})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, asked))
    family = variant.oracle.family
    banned = {family.mask_id, family.delete_id, family.split_id}
    for (prompt, case), answer in zip(asked, answers, strict=True):
        expected = variant.oracle(prompt, max_new_tokens=80, **reference(case))
        assert tuple(answer["output_ids"]) == expected.output_ids, case
        assert answer["meta_info"]["denoise_forwards"] == expected.forwards, case
        assert not banned & set(answer["output_ids"])


def test_the_checkpoint_names_its_policy(variant: Variant) -> None:
    prompt = variant.prompt(4)
    answer = variant.server.generate(prompt, max_new_tokens=80)
    expected = variant.oracle(prompt, max_new_tokens=80, **reference(DEFAULT[variant.name]))
    assert tuple(answer["output_ids"]) == expected.output_ids
    assert answer["meta_info"]["denoise_forwards"] == expected.forwards


def test_grammars_and_counting_penalties_beside_editing(variant: Variant) -> None:
    schema = json.dumps(
        {
            "type": "object",
            "properties": {"a": {"enum": [1, 22, 333]}},
            "required": ["a"],
            "additionalProperties": False,
        }
    )
    prompt = variant.prompt(5)
    answer = variant.server.generate(prompt, max_new_tokens=80, sampling={"json_schema": schema})
    assert json.loads(answer["text"])["a"] in (1, 22, 333)
    if variant.name == "checkpoint_lookahead":
        return
    refused: list[tuple[dict[str, Any], str]] = [
        ({"json_schema": schema, "custom_params": DEFAULT[variant.name]}, "with a grammar"),
        ({"frequency_penalty": 0.5}, "frequency_penalty must be 0"),
        ({"repetition_penalty": 1.2}, "repetition_penalty must be 1"),
    ]
    if variant.name == "checkpoint_levenshtein":
        refused.append(({"min_new_tokens": 3}, "min_new_tokens must be 0 under policy levenshtein"))
    for sampling, named in refused:
        with pytest.raises(HTTPError) as caught:
            variant.server.generate(prompt, max_new_tokens=8, sampling=sampling)
        assert caught.value.code == 400
        assert named in caught.value.read().decode()


def test_a_trace_moves_with_its_tokens(variant: Variant) -> None:
    for seed in range(3):
        prompt = variant.prompt(seed)
        case = {**OWN[variant.name][1], "trace": True}
        answer = variant.server.generate(
            prompt, max_new_tokens=80, sampling={"custom_params": case}, return_logprob=True
        )
        expected = variant.oracle(prompt, max_new_tokens=80, **reference(OWN[variant.name][1]))
        meta = answer["meta_info"]
        assert tuple(meta["unmask_step"]) == expected.unmask_step
        assert meta["unmask_confidence"] == pytest.approx(expected.confidence, abs=1e-4)
        logprobs = [value for value, *_ in meta["output_token_logprobs"]]
        assert logprobs == pytest.approx(expected.logprob, abs=1e-2)
