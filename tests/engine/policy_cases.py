"""Requests of every policy, as a client writes them and as the reference takes them."""

from __future__ import annotations

from typing import Any

COMMON = ("policy", "steps", "minimal_topk", "lookahead", "lookahead_start", "lookahead_semi")

UNMASKING: tuple[dict[str, Any], ...] = (
    {"policy": "threshold", "threshold": 0.7},
    {"policy": "threshold", "lookahead": 2},
    {"policy": "threshold", "lookahead": 3, "lookahead_start": 0.0, "lookahead_semi": 0.3},
    {"policy": "threshold", "steps": 8, "lookahead": 4, "lookahead_start": 0.2},
    {"policy": "steps", "steps": 8},
    {"policy": "steps", "steps": 12, "lookahead": 2, "lookahead_semi": 0.6},
    {"policy": "entropy"},
    {"policy": "entropy", "gamma": 0.8, "lookahead": 2},
    {"policy": "hierarchical"},
    {"policy": "hierarchical", "low_threshold": 0.3, "lookahead": 3},
    {"policy": "credit"},
    {"policy": "credit", "credit_alpha": 2.0, "decay_beta": 0.95, "lookahead": 2},
    {"policy": "factor"},
    {"policy": "factor", "factor": 0.4, "steps": 10, "lookahead": 2, "lookahead_start": 0.1},
)
EDITING: tuple[dict[str, Any], ...] = (
    {"policy": "edit"},
    {"policy": "edit", "preset": "speed"},
    {"policy": "edit", "preset": "speed", "penalty_lambda": 3.0},
    {"policy": "edit", "threshold": 0.3, "edit_threshold": 0.1, "max_post_edit_steps": 1},
    {"policy": "edit", "threshold": 0.2, "max_post_edit_steps": 0},
)
LEVENSHTEIN: tuple[dict[str, Any], ...] = (
    {"policy": "levenshtein"},
    {"policy": "levenshtein", "threshold": 0.2, "max_post_edit_steps": 3},
    {"policy": "levenshtein", "threshold": 0.9, "edit_threshold": 0.5, "max_post_edit_steps": 0},
)


def reference(case: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `reference.decode.decode` for what a client puts into custom_params."""
    common = {key: value for key, value in case.items() if key in COMMON}
    own = {key: value for key, value in case.items() if key not in COMMON}
    return {**common, "parameters": own}
