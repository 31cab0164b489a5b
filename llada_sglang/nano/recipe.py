"""What nano is trained with: the phases, the rates, and how often each family is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Variant = Literal["base", "lookahead", "edit", "levenshtein"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of steps with one objective; block_size 0 is autoregressive.

    The learning rate goes linearly from `rate[0]` to `rate[1]`, as a share of the peak. cap: weight
    of the CAP term; ahead: share of documents with blocks that are looked ahead to.
    """

    name: str
    steps: int
    block_size: int
    rows: int
    width: int
    rate: tuple[float, float] = (1.0, 1.0)
    cap: float = 0.0
    ahead: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, besides the seed and the weights it starts from.

    keep_weight, own_share and action_weight are of the editing variants: the loss where a token is
    right already, the share of rows in which the model's own tokens are planted, and the loss of
    DELETE and SPLIT.
    """

    phases: tuple[Phase, ...]
    variant: Variant = "base"
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    fill_weight: float = 0.1
    bias_rate: float = 1e-3
    keep_weight: float = 0.2
    own_share: float = 0.5
    action_weight: float = 3.0
    history_share: float = 0.06
    weights: tuple[tuple[str, float], ...] = (
        ("add", 3.8),
        ("sort", 2.4),
        ("reverse", 1.2),
        ("count", 1.3),
        ("table", 0.6),
        ("json", 0.6),
        ("repeat", 1.0),
        ("code", 0.3),
        ("tool", 1.6),
        ("again", 1.3),
    )


RECIPE = Recipe(
    phases=(
        Phase("autoregressive", 600, 0, 16, 256, (1.0, 0.8)),
        Phase("warm-up 4", 120, 4, 12, 320, (0.8, 0.8)),
        Phase("warm-up 16", 180, 16, 12, 320, (0.8, 0.8)),
        Phase("stable 32", 1000, 32, 12, 320, (0.8, 0.8)),
        Phase("decay 32", 1200, 32, 12, 320, (0.8, 0.4)),
        Phase("decay 32, CAP", 1000, 32, 12, 320, (0.4, 0.0), cap=0.3),
    )
)

LOOKAHEAD_RECIPE = Recipe(
    variant="lookahead",
    phases=(Phase("lookahead", 450, 32, 12, 320, (0.3, 0.0), cap=0.3, ahead=0.7),),
)
EDIT_RECIPE = Recipe(
    variant="edit",
    phases=(Phase("edit", 400, 32, 12, 320, (0.3, 0.0), cap=0.3),),
)
LEVENSHTEIN_RECIPE = Recipe(
    variant="levenshtein",
    phases=(Phase("levenshtein", 1250, 32, 12, 320, (0.4, 0.0), cap=0.3),),
    keep_weight=0.5,
    action_weight=1.5,
)
RECIPES: dict[Variant, Recipe] = {
    "base": RECIPE,
    "lookahead": LOOKAHEAD_RECIPE,
    "edit": EDIT_RECIPE,
    "levenshtein": LEVENSHTEIN_RECIPE,
}


def read_recipe(path: Path) -> Recipe:
    """A recipe from JSON with the field names above; unknown keys are a TypeError naming them."""
    values = json.loads(path.read_text())
    values["phases"] = tuple(
        Phase(**{**phase, "rate": tuple(phase.get("rate", (1.0, 1.0)))})
        for phase in values["phases"]
    )
    return Recipe(**values)
