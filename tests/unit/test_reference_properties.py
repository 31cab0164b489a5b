"""What holds for every policy on every model, also on one that means ill."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llada_sglang.reference.decode import Decoded, decode_with, unmask_schedule
from llada_sglang.reference.policies import EDITING, unmasking
from llada_sglang.reference.policies import settings as settings_of
from llada_sglang.reference.tokens import TokenRules, candidate_of, legal, noise

VOCAB, MASK, DELETE, SPLIT, EOS = 9, 3, 5, 6, 8
UNMASKING = ("threshold", "steps", "entropy", "hierarchical", "credit", "factor")
KINDS = ("random", "constant", "oscillating", "delete", "split", "nan", "infinite")


def logits_of_kind(kind: str, seed: int, prompt: list[int], block: int) -> Any:
    """A deterministic function of the canvas that checks what it is asked."""

    def logits_of(ids: Tensor) -> Tensor:
        canvas = ids.tolist()
        assert canvas[: len(prompt)] == prompt
        assert len(canvas) % block == 0
        if kind == "constant":
            return torch.zeros(len(canvas), VOCAB)
        generator = torch.Generator().manual_seed(zlib.crc32(bytes([seed, *canvas])))
        logits = torch.randn(len(canvas), VOCAB, generator=generator) * 3
        if kind == "oscillating":
            logits[torch.arange(len(canvas)), (ids + 1) % VOCAB] += 20
        elif kind in ("delete", "split"):
            logits[:, DELETE if kind == "delete" else SPLIT] += 6
        elif kind == "nan":
            logits[torch.rand(logits.shape, generator=generator) < 0.5] = torch.nan
            logits[torch.rand(len(canvas), generator=generator) < 0.3] = torch.nan
        elif kind == "infinite":
            logits[torch.rand(logits.shape, generator=generator) < 0.3] = -torch.inf
            logits[torch.rand(logits.shape, generator=generator) < 0.1] = torch.inf
        return logits

    return logits_of


RULES = st.builds(
    TokenRules,
    temperature=st.sampled_from([0.0, 0.0, 0.7]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 3),
    logit_bias=st.sampled_from([(), ((2, 1.5), (MASK, 100.0))]),
    min_new_tokens=st.integers(0, 5),
)


@settings(deadline=None, max_examples=250)
@given(
    policy=st.sampled_from([*UNMASKING, "edit", "levenshtein", "levenshtein"]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 255),
    block=st.sampled_from([1, 2, 3, 4]),
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=6),
    count=st.integers(0, 9),
    steps=st.integers(1, 5),
    lookahead=st.integers(1, 4),
    start=st.sampled_from([0.0, 0.5, 1.0]),
    semi=st.sampled_from([0.0, 0.6, 1.0]),
    budget=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 0.3, 0.9]),
    ignore_eos=st.booleans(),
    early=st.booleans(),
    rules=RULES,
)
def test_decoding_ends_with_legal_tokens_only(
    policy: str,
    kind: str,
    seed: int,
    block: int,
    prompt: list[int],
    count: int,
    steps: int,
    lookahead: int,
    start: float,
    semi: float,
    budget: int,
    threshold: float,
    ignore_eos: bool,
    early: bool,
    rules: TokenRules,
) -> None:
    editing = policy in EDITING
    result = decode_with(
        logits_of_kind(kind, seed, prompt, block),
        prompt,
        block_size=block,
        mask_id=MASK,
        eos_ids=[EOS],
        max_new_tokens=count,
        policy=policy,
        parameters={"max_post_edit_steps": budget} if editing else None,
        threshold=threshold,
        steps=steps,
        eos_early_stop=early,
        lookahead=1 if editing else lookahead,
        lookahead_start=start,
        lookahead_semi=semi,
        delete_id=DELETE,
        split_id=SPLIT,
        ignore_eos=ignore_eos,
        rules=rules,
    )
    output = result.output_ids
    assert len(result.unmask_step) == len(result.confidence) == len(result.logprob) == len(output)
    assert all(0.0 <= p <= 1.0 + 1e-6 for p in result.confidence)
    assert MASK not in output
    assert all(0 <= token < VOCAB for token in output)
    if policy == "levenshtein":
        assert not {DELETE, SPLIT} & set(output)
    if result.finish_reason == "length":
        assert len(output) == count
        assert ignore_eos or EOS not in output
    else:
        assert output.index(EOS) == len(output) - 1 < count
    if count == 0:
        assert result == Decoded((), "length", (), (), ())
        return

    blocks = -(-(len(prompt) + count) // block) - len(prompt) // block
    per_block = block + {"edit": budget, "levenshtein": budget + 1}.get(policy, 0)
    assert 1 <= len(result.steps_per_block) <= blocks
    assert 1 <= result.forwards <= blocks * per_block
    assert result.forwards <= sum(result.steps_per_block)
    assert max(result.unmask_step) < max(result.steps_per_block)
    if editing:
        shared = sum(result.steps_per_block) - result.forwards
        assert 0 <= shared < len(result.steps_per_block)
    elif lookahead == 1:
        assert result.forwards == sum(result.steps_per_block)


def one_block_at_a_time(
    logits_of: Any, policy: str, prompt: list[int], block: int, count: int, **options: Any
) -> list[int]:
    """The tokens of an unmasking policy without any notion of blocks in flight."""
    rules, steps = options["rules"], options["steps"]
    schedule = unmask_schedule(block, count, steps=steps, minimal_topk=1)
    canvas: list[int | None] = list(prompt)
    while len(canvas) < len(prompt) + count:
        low = len(canvas) // block * block
        canvas += [None] * (low + block - len(canvas))
        worker = unmasking(policy, settings_of(policy, None, options["threshold"]))
        for step in range(block):
            masks = [at for at in range(block) if canvas[low + at] is None]
            if not masks:
                break
            ids = torch.tensor([MASK if token is None else token for token in canvas])
            rows = logits_of(ids)[low:]
            found = {}
            for at in masks:
                row = worker.adjust(at, legal(rows[at], [MASK]))
                found[at] = candidate_of(row, rules, noise(rules.seed, low + at, step))
            for at in worker.take(found, least=schedule[step], forced=True):
                canvas[low + at] = found[at].token
    text = [token for token in canvas[len(prompt) :][:count] if token is not None]
    return text[: text.index(EOS) + 1] if EOS in text else text


@pytest.mark.parametrize("policy", UNMASKING)
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 255),
    block=st.sampled_from([2, 4]),
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=5),
    count=st.integers(1, 11),
    options=st.fixed_dictionaries(
        {
            "rules": st.sampled_from([TokenRules(), TokenRules(temperature=0.8, seed=5)]),
            "steps": st.integers(1, 5),
            "threshold": st.sampled_from([0.3, 0.6, 0.9]),
        }
    ),
)
def test_a_lookahead_of_1_is_none(
    policy: str, seed: int, block: int, prompt: list[int], count: int, options: dict[str, Any]
) -> None:
    logits_of = logits_of_kind("random", seed, prompt, block)
    values: dict[str, Any] = {"block_size": block, "mask_id": MASK, "eos_ids": [EOS]}
    values |= {"max_new_tokens": count, "policy": policy} | options
    expected = one_block_at_a_time(logits_of, policy, prompt, block, count, **options)
    none = decode_with(logits_of, prompt, **values)
    assert list(none.output_ids) == expected
    one = decode_with(logits_of, prompt, **values, lookahead=1, lookahead_start=0.0)
    never = decode_with(logits_of, prompt, **values, lookahead=3, lookahead_start=1.1)
    assert none == one == never


@settings(deadline=None, max_examples=60)
@given(
    policy=st.sampled_from(UNMASKING),
    seed=st.integers(0, 255),
    lookahead=st.integers(2, 4),
    count=st.integers(1, 16),
)
def test_lookahead_gives_the_same_text_where_later_blocks_do_not_matter(
    policy: str, seed: int, lookahead: int, count: int
) -> None:
    """A model that looks at positions only must say the same, in no more forwards."""
    rows = torch.randn(24, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    values: dict[str, Any] = {"block_size": 4, "mask_id": MASK, "eos_ids": [EOS], "policy": policy}
    values |= {"max_new_tokens": count, "threshold": 0.8}
    if policy == "credit":
        values["parameters"] = {"credit_alpha": 0.0}
    alone = decode_with(lambda ids: rows[: len(ids)], [1, 2], **values)
    ahead = decode_with(lambda ids: rows[: len(ids)], [1, 2], **values, lookahead=lookahead)
    assert (ahead.output_ids, ahead.finish_reason) == (alone.output_ids, alone.finish_reason)
    assert ahead.forwards <= alone.forwards
