"""Rounds of every policy on models that mean ill: the reference's tokens, and always an end."""

from __future__ import annotations

import random
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modelled_rounds import ModelledRounds
from torch import Tensor

from llada_sglang.decoding.policy import Checkpoint
from llada_sglang.decoding.sampling import Sampling
from llada_sglang.reference.decode import decode_with
from llada_sglang.reference.tokens import TokenRules

BLOCK, VOCAB, MASK, DELETE, SPLIT, EOS = 4, 11, 3, 5, 6, 8
CHECKPOINT = Checkpoint(BLOCK, MASK, DELETE, SPLIT)
SHARED = ("policy", "steps", "minimal_topk", "eos_early_stop")
AHEAD = ("lookahead", "lookahead_start", "lookahead_semi")


def model(kind: str, seed: int) -> Any:
    """Logits that are a function of the canvas."""

    def logits_of(ids: Tensor) -> Tensor:
        # A block sees no further than its own end: asked for a longer canvas, it answers the same.
        rows = []
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            canvas = ids[:end].tolist()
            generator = torch.Generator().manual_seed(zlib.crc32(bytes([seed, *canvas])))
            rows.append(torch.randn(BLOCK, VOCAB, generator=generator) * 2)
        logits = torch.cat(rows)
        at = torch.arange(len(ids))
        if kind == "ties":
            logits[:] = 0.0
        elif kind == "mask":
            logits[:, MASK] = 50.0
        elif kind == "oscillating":
            logits[at, (ids + 1) % VOCAB] += 20
        elif kind in ("delete", "split"):
            logits[:, DELETE if kind == "delete" else SPLIT] += 6
        elif kind == "both":
            logits[at, torch.where(at % 2 == 0, DELETE, SPLIT)] += 6
        elif kind == "nan":
            logits[
                torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
            ] = torch.nan
            logits[:, 1] = logits[:, 1].nan_to_num(0.0)
        elif kind == "broken":
            logits[:] = torch.nan
        return logits

    return logits_of


KINDS = ("random", "ties", "mask", "oscillating", "delete", "split", "both", "nan")
THRESHOLDS = st.sampled_from([0.1, 0.3, 0.9, 1.0])


def policy(name: str, **parameters: Any) -> Any:
    return st.fixed_dictionaries({"policy": st.just(name), **parameters})


UNMASKING = st.one_of(
    policy("threshold", threshold=THRESHOLDS),
    policy("steps"),
    policy("entropy", gamma=st.sampled_from([0.0, 0.5, 2.0, 9.0])),
    policy("hierarchical", threshold=THRESHOLDS, low_threshold=st.sampled_from([0.0, 0.2, 0.5])),
    policy("credit", threshold=THRESHOLDS, credit_alpha=st.sampled_from([0.0, 0.7, 4.0])),
    policy("factor", factor=st.sampled_from([0.1, 1.0, 3.0])),
).flatmap(
    lambda own: st.fixed_dictionaries(
        {
            "steps": st.integers(1, 5),
            "lookahead": st.integers(1, 4),
            "lookahead_start": st.sampled_from([0.0, 0.5, 1.0]),
            "lookahead_semi": st.sampled_from([0.0, 0.6, 1.0]),
            "eos_early_stop": st.booleans(),
        }
    ).map(lambda common: {**common, **own})
)
BUDGETS = st.integers(0, 4)
EDITING = st.one_of(
    policy("edit", preset=st.sampled_from(["quality", "speed"]), max_post_edit_steps=BUDGETS),
    policy(
        "edit",
        threshold=THRESHOLDS,
        edit_threshold=st.sampled_from([0.0, 0.3]),
        max_post_edit_steps=BUDGETS,
        penalty_lambda=st.sampled_from([0.0, 2.0]),
    ),
    policy(
        "levenshtein",
        threshold=THRESHOLDS,
        edit_threshold=st.sampled_from([0.0, 0.3]),
        max_post_edit_steps=BUDGETS,
    ),
)
REQUESTS = st.fixed_dictionaries(
    {
        "custom": st.one_of(UNMASKING, EDITING, EDITING),
        "prompt": st.lists(st.integers(0, VOCAB - 1), max_size=9),
        "tokens": st.integers(1, 14),
        "ignore_eos": st.booleans(),
        "temperature": st.sampled_from([0.0, 0.0, 0.8]),
        "seed": st.integers(0, 3),
        "min_new_tokens": st.sampled_from([0, 0, 3]),
    }
)


def expected(logits_of: Any, request: dict[str, Any]) -> Any:
    custom = request["custom"]
    common = {key: custom[key] for key in (*SHARED, *AHEAD) if key in custom}
    return decode_with(
        logits_of,
        request["prompt"],
        block_size=BLOCK,
        mask_id=MASK,
        eos_ids=[EOS],
        max_new_tokens=request["tokens"],
        delete_id=DELETE,
        split_id=SPLIT,
        ignore_eos=request["ignore_eos"],
        rules=TokenRules(
            temperature=request["temperature"],
            seed=request["seed"],
            min_new_tokens=min(request["min_new_tokens"], request["tokens"]),
        ),
        parameters={k: v for k, v in custom.items() if k not in (*SHARED, *AHEAD)},
        **common,
    )


def submit(rounds: ModelledRounds, request: dict[str, Any]) -> Any:
    return rounds.submit(
        request["prompt"],
        tokens=request["tokens"],
        eos=[EOS],
        ignore_eos=request["ignore_eos"],
        custom=request["custom"],
        sampling=Sampling(temperature=request["temperature"], seed=request["seed"]),
        min_new_tokens=min(request["min_new_tokens"], request["tokens"]),
    )


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 255),
    requests=st.lists(REQUESTS, min_size=1, max_size=6),
    retract=st.integers(0, 4),
    overlap=st.booleans(),
)
def test_any_mix_of_policies_gives_the_references_tokens(
    kind: str, seed: int, requests: list[dict[str, Any]], retract: int, overlap: bool
) -> None:
    logits_of = model(kind, seed)
    rounds = ModelledRounds(logits_of, CHECKPOINT, vocab=VOCAB, overlap=overlap)
    rng = random.Random(seed)
    asked = [(submit(rounds, request), request) for request in requests]
    turn = 0
    while rounds.step():
        turn += 1
        assert turn < 3000
        if retract and turn % retract == 0 and turn < 40 and rounds.rounds.states:
            rounds.rounds.retract(rng.choice(rounds.rounds.states))
    for got, request in asked:
        want = expected(logits_of, request)
        text = got.output_ids_through_stop
        assert tuple(text) == want.output_ids
        count = len(text)
        assert got.customized_info["unmask_step"][:count] == list(want.unmask_step)
        assert got.customized_info["unmask_confidence"][:count] == pytest.approx(
            want.confidence, abs=1e-5
        )
        forwards = rounds.records[got.rid].denoise_forwards
        if overlap and request["custom"]["policy"] in ("edit", "levenshtein"):
            assert want.forwards <= forwards <= sum(want.steps_per_block)
        else:
            assert forwards == want.forwards
        assert not {MASK, DELETE, SPLIT} & set(text)


@settings(deadline=None, max_examples=100)
@given(request=REQUESTS, kind=st.sampled_from(["broken", "ties", "oscillating"]))
def test_decoding_ends_whatever_the_model_says(request: dict[str, Any], kind: str) -> None:
    rounds = ModelledRounds(model(kind, 1), CHECKPOINT, vocab=VOCAB)
    got = submit(rounds, request)
    rounds.run(limit=1000)
    assert got.finished()
    assert len(got.output_ids_through_stop) <= request["tokens"]
    assert MASK not in got.output_ids_through_stop


@pytest.mark.parametrize("name", ["threshold", "edit"])
def test_actions_are_candidates_of_levenshtein_only(name: str) -> None:
    rounds = ModelledRounds(model("both", 3), CHECKPOINT, vocab=VOCAB)
    got = rounds.submit([1, 2], tokens=12, eos=[EOS], ignore_eos=True, custom={"policy": name})
    rounds.run()
    assert len(got.output_ids) == 12
    assert not {MASK, DELETE, SPLIT} & set(got.output_ids)


@pytest.mark.parametrize("name", ["edit", "levenshtein"])
def test_a_block_that_is_found_final_has_carried_the_next_ones_first_step(name: str) -> None:
    """Its row is there in the same forward, and nothing of it counts where the block changed."""
    request: dict[str, Any] = {
        "custom": {"policy": name, "threshold": 0.3, "edit_threshold": 0.9},
        "prompt": [1, 2],
        "tokens": 40,
        "ignore_eos": True,
        "temperature": 0.0,
        "seed": 0,
        "min_new_tokens": 0,
    }
    rounds = ModelledRounds(model("random", 1), CHECKPOINT, vocab=VOCAB)
    got = submit(rounds, request)
    rounds.run()
    want = expected(model("random", 1), request)
    assert tuple(got.output_ids) == want.output_ids
    tally = rounds.rounds.tally
    shared = sum(want.steps_per_block) - want.forwards
    assert shared > 0
    assert tally.denoise_forwards == want.forwards
    assert tally.denoise_rows == sum(want.steps_per_block), "a closed row is nobody's"
