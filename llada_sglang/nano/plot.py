"""PNG plots: a training run, and accuracy and speed against the threshold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def draw_training(log: Path, out: Path) -> None:
    """Read metrics.jsonl, write the plot; does nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in log.read_text().splitlines()]
    # A resumed run repeats the steps since its last state: the later record of a step counts.
    losses = _by_step(record for record in records if "loss" in record)
    scored = _by_step(record for record in records if "scores" in record)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for phase in dict.fromkeys(record["phase"] for record in losses):
        chosen = [record for record in losses if record["phase"] == phase]
        left.plot(
            [r["step"] for r in chosen], [r["loss"] for r in chosen], linewidth=0.8, label=phase
        )
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training loss")
    if losses:
        left.legend(fontsize=7)
    families = [score["family"] for score in scored[0]["scores"]] if scored else []
    for index, family in enumerate(families):
        rows = [record["scores"][index] for record in scored]
        right.plot(
            [record["step"] for record in scored],
            [row["right"] / row["count"] for row in rows],
            linewidth=2.0 if family == "all" else 0.8,
            color="black" if family == "all" else None,
            label=family,
        )
    right.set(xlabel="step", ylabel="exact match", ylim=(0, 1.02), title="held-out prompts")
    if scored:
        right.legend(fontsize=7)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _by_step(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted({r["step"]: r for r in records}.values(), key=lambda r: r["step"])


def draw_curve(rows: Sequence[tuple[float, float, float]], out: Path) -> None:
    """Exact match and tokens per forward against the threshold, from (threshold, match, TPF)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    thresholds, matches, speeds = zip(*sorted(rows), strict=True)
    figure, left = plt.subplots(figsize=(6.5, 4), layout="constrained")
    right = left.twinx()
    left.plot(thresholds, matches, "o-", color="tab:blue")
    right.plot(thresholds, speeds, "s--", color="tab:red")
    left.set(xlabel="threshold", ylim=(0, 1.02))
    left.set_ylabel("exact match", color="tab:blue")
    right.set_ylabel("tokens per forward", color="tab:red")
    right.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    figure.savefig(out, dpi=110)
    plt.close(figure)
