"""What nano is trained with: the phases, the rates, and how often each family is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of steps with one objective; block_size 0 is autoregressive.

    The learning rate goes linearly from `rate[0]` to `rate[1]`, as a share of the peak.
    """

    name: str
    steps: int
    block_size: int
    rows: int
    width: int
    rate: tuple[float, float] = (1.0, 1.0)
    cap: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, besides the seed."""

    phases: tuple[Phase, ...]
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    fill_weight: float = 0.1
    bias_rate: float = 1e-3
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


def read_recipe(path: Path) -> Recipe:
    """A recipe from JSON with the field names above; unknown keys are a TypeError naming them."""
    values = json.loads(path.read_text())
    values["phases"] = tuple(
        Phase(**{**phase, "rate": tuple(phase.get("rate", (1.0, 1.0)))})
        for phase in values["phases"]
    )
    return Recipe(**values)
