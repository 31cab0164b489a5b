"""Decoding parameters of a request: what is accepted, what is refused, and what they mean."""

from __future__ import annotations

import pytest

from llada_sglang.config import DecodeParams
from llada_sglang.errors import DecodeParamError


def test_defaults_are_the_published_ones():
    params = DecodeParams.parse(None)
    assert params.as_dict() == {
        "policy": "threshold",
        "threshold": 0.95,
        "steps": 32,
        "minimal_topk": 1,
        "eos_early_stop": True,
        "stream_mode": "block",
        "trace": False,
    }


def test_a_request_overrides_the_server_and_keeps_the_rest():
    server = DecodeParams.parse({"threshold": 0.8, "steps": 16})
    assert DecodeParams.parse({"steps": 8}, server) == DecodeParams(threshold=0.8, steps=8)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"treshold": 0.5}, "treshold"),
        ({"threshold": 1.7}, "threshold must be in (0, 1], got 1.7"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"steps": 0}, "steps must be at least 1, got 0; the default is 32"),
        ({"steps": 1.5}, "steps"),
        ({"minimal_topk": -1}, "minimal_topk"),
        ({"eos_early_stop": 1}, "eos_early_stop"),
        ([1], "must be a mapping"),
        ({"policy": "greedy"}, "policy must be one of threshold"),
    ],
)
def test_bad_parameters_are_refused_by_name(given, named):
    with pytest.raises(DecodeParamError) as caught:
        DecodeParams.parse(given)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("params", "max_new", "expected"),
    [
        (DecodeParams(), 2048, (1,) * 32),
        (DecodeParams(steps=16), 2048, (2,) * 16),
        (DecodeParams(steps=5), 2048, (7, 7, 6, 6, 6)),
        (DecodeParams(steps=64), 2048, (1,) * 32),
        (DecodeParams(steps=1), 2048, (32,)),
        (DecodeParams(minimal_topk=4), 2048, (1,) * 32),
        (DecodeParams(minimal_topk=4), 32, (4,) * 8),
        (DecodeParams(minimal_topk=100), 32, (32,)),
        (DecodeParams(), 5, (1,) * 32),
    ],
)
def test_the_schedule_unmasks_a_block_in_at_most_its_steps(params, max_new, expected):
    schedule = params.schedule(32, max_new)
    assert schedule == expected
    assert sum(schedule) == 32
