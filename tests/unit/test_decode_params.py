"""Decoding parameters of a request: what is accepted, what is refused, and what they mean."""

from __future__ import annotations

import re

import pytest

from llada_sglang.config import Decoding, parameter_names
from llada_sglang.decoding.policies import policy_classes
from llada_sglang.decoding.policy import Checkpoint, PolicySet
from llada_sglang.errors import DecodeParamError

PLAIN = Checkpoint(32, mask_id=99)
ACTIONS = Checkpoint(32, mask_id=99, delete_id=1, split_id=2)


def server(given=None, *, policy="threshold", checkpoint=ACTIONS):
    """The decoding of a server with such defaults."""
    return Decoding.of_server(PolicySet(checkpoint, policy_classes()), policy, given)


def parse(given, defaults=None):
    return (defaults or server()).parse(given)


def test_defaults_are_the_published_ones():
    params = parse(None)
    assert params.policy.name == "threshold"
    assert params.values == {
        "threshold": 0.95,
        "steps": 32,
        "minimal_topk": 1,
        "eos_early_stop": True,
        "lookahead": 1,
        "lookahead_start": 0.5,
        "lookahead_semi": 0.9,
    }
    assert (params.stream_mode, params.trace) == ("block", False)


def test_a_request_overrides_the_server_and_keeps_the_rest():
    params = parse({"steps": 8}, server({"threshold": 0.8, "steps": 16, "trace": True}))
    assert (params.values["threshold"], params.values["steps"], params.trace) == (0.8, 8, True)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"treshold": 0.5}, "treshold"),
        ({"threshold": 1.7}, "threshold must be a number in (0, 1], got 1.7"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0; the default is 32"),
        ({"steps": 1.5}, "steps"),
        ({"minimal_topk": -1}, "minimal_topk"),
        ({"eos_early_stop": 1}, "eos_early_stop"),
        ({"trace": 1}, "trace must be true or false"),
        ({"stream_mode": "fast"}, "stream_mode must be one of block, denoise"),
        ({"lookahead": 0}, 'lookahead must be an integer in [1, 8] or "auto"'),
        ({"lookahead": 9}, "lookahead"),
        ({"lookahead": "wide"}, "lookahead"),
        ({"lookahead_start": 1.1}, "lookahead_start must be a number in [0, 1]"),
        ([1], "must be a mapping"),
        ({"policy": "greedy"}, "policy must be one of credit, edit, entropy, factor"),
        ({"policy": ["edit"]}, "policy must be one of"),
        ({"policy": "steps", "threshold": 0.5}, "policy steps knows eos_early_stop, lookahead"),
        ({"policy": "edit", "steps": 4}, "policy edit knows edit_threshold"),
        ({"policy": "edit", "lookahead": 2}, "lookahead"),
        ({"policy": "edit", "preset": "best"}, "preset must be one of quality, speed"),
        ({"policy": "edit", "max_post_edit_steps": 65}, "an integer in [0, 64]"),
    ],
)
def test_bad_parameters_are_refused_by_name(given, named):
    with pytest.raises(DecodeParamError, match=re.escape(named)):
        parse(given)
    if isinstance(given, dict):
        with pytest.raises(DecodeParamError, match=re.escape(named)):
            server(given)


def test_levenshtein_needs_a_checkpoint_that_declares_its_actions():
    assert parse({"policy": "levenshtein"}).values["threshold"] == 0.5
    with pytest.raises(DecodeParamError, match="delete_token_id and split_token_id"):
        parse({"policy": "levenshtein"}, server(checkpoint=PLAIN))


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        ({}, {}, (0.7, 0.5)),
        ({}, {"preset": "speed"}, (0.5, 0.0)),
        ({}, {"preset": "speed", "edit_threshold": 0.9}, (0.5, 0.9)),
        ({"threshold": 0.6}, {}, (0.6, 0.5)),
        ({"threshold": 0.6}, {"preset": "speed"}, (0.5, 0.0)),
        ({"preset": "speed"}, {"threshold": 0.6}, (0.6, 0.0)),
    ],
)
def test_a_preset_holds_where_no_number_is_given(defaults, given, expected):
    values = parse(given, server(defaults, policy="edit")).values
    assert (values["threshold"], values["edit_threshold"]) == expected


def test_a_servers_numbers_hold_for_policies_of_the_same_kind():
    defaults = server({"threshold": 0.8, "lookahead": 2, "trace": True})
    other = parse({"policy": "hierarchical"}, defaults)
    assert (other.values["threshold"], other.values["lookahead"]) == (0.8, 2)
    edit = parse({"policy": "edit"}, defaults)
    assert (edit.values["threshold"], edit.trace) == (0.7, True)


def test_a_grammar_is_decoded_by_a_policy_that_takes_nothing_back():
    defaults = server({"threshold": 0.3}, policy="edit")
    params = defaults.parse({"steps": 4}, constrained=True)
    assert (params.policy.name, params.values["threshold"]) == ("threshold", 0.95)
    with pytest.raises(DecodeParamError, match="policy edit cannot be used with a grammar"):
        defaults.parse({"policy": "edit"}, constrained=True)


def test_every_parameter_is_a_known_key_of_request_bodies():
    names = parameter_names()
    for policy in policy_classes().values():
        assert policy.parameters.keys() <= names
    assert {"policy", "trace", "stream_mode"} <= names


@pytest.mark.parametrize(
    ("params", "max_new", "expected"),
    [
        ({}, 2048, (1,) * 32),
        ({"steps": 16}, 2048, (2,) * 16),
        ({"steps": 5}, 2048, (7, 7, 6, 6, 6)),
        ({"steps": 64}, 2048, (1,) * 32),
        ({"steps": 1}, 2048, (32,)),
        ({"minimal_topk": 4}, 2048, (1,) * 32),
        ({"minimal_topk": 4}, 32, (4,) * 8),
        ({"minimal_topk": 100}, 32, (32,)),
        ({}, 5, (1,) * 32),
    ],
)
def test_the_schedule_unmasks_a_block_in_at_most_its_steps(params, max_new, expected):
    schedule = parse(params).schedule(32, max_new)
    assert schedule == expected
    assert sum(schedule) == 32
