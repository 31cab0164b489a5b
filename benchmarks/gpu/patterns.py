"""Forced acceptance: how many positions a step resolves, whatever the model says.

Random weights accept nothing, so tokens per forward are set: a block of 32 takes a fixed number of
steps, the best positions of each are accepted, as many as the schedule says. Ours has that as the
policy `steps`; stock gets an algorithm of its own class (`plugin`), whose step is stock's but for
the number of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Pattern:
    """One schedule. tpf: tokens per forward it is named after; steps: of each block."""

    tpf: int
    steps: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Positions each step resolves; they sum to a block."""
        base, rest = divmod(BLOCK, self.steps)
        return tuple(base + (step < rest) for step in range(self.steps))

    @property
    def exact_tpf(self) -> float:
        return BLOCK / self.steps

    def parameters(self) -> dict[str, Any]:
        """custom_params of a request to ours."""
        return {"policy": "steps", "steps": self.steps}


PATTERNS = {tpf: Pattern(tpf, steps) for tpf, steps in ((1, 32), (3, 11), (5, 7), (8, 4))}
