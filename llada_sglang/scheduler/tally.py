"""What rounds count, for metrics."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Counts since the last reading.

    A forward counts for every kind it carries rows of; rows that turned out to be nobody's are of
    no kind. rows_per_forward: one entry per forward, of all of its rows.
    ended_tokens_per_forward: one entry per ended request that denoised.
    """

    forwards: int = 0
    prefill_rows: int = 0
    commit_rows: int = 0
    denoise_rows: int = 0
    prefill_forwards: int = 0
    commit_forwards: int = 0
    denoise_forwards: int = 0
    rows_per_forward: list[int] = field(default_factory=list)
    ended_tokens_per_forward: list[float] = field(default_factory=list)
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retracted: int = 0
