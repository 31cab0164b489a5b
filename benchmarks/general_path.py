"""What sampled and constrained rows cost the greedy ones beside them, and what a mask costs.

`python -m benchmarks.general_path --model DIR`. One scheduler in this process, without sockets. In
every repetition the same greedy requests run alone, beside as many more greedy ones, beside as
many sampled ones and beside as many constrained ones; the order turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.engines import OURS, in_words
from benchmarks.workloads import RandomTokens

MODULE = "benchmarks.general_path"
NAME = "general-path"
FLAGS = ("--dtype", "float32", "--max-running-requests", "32", "--max-total-tokens", "16384")
SCHEMA = {
    "type": "array",
    "items": {"enum": ["red", "green", "blue"]},
    "minItems": 60,
    "maxItems": 60,
}
BESIDE: dict[str, dict[str, Any] | None] = {
    "nobody": None,
    "greedy": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top_p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "repetition penalty": {"repetition_penalty": 1.2},
    "json_schema": {"json_schema": json.dumps(SCHEMA)},
}


def measure(host: Any, prompts: RandomTokens, kind: str, seed: int, count: int) -> dict[str, float]:
    """Seconds per turn, and tokens per second of the greedy requests."""

    def submit(offset: int, sampling: dict[str, Any]) -> str:
        return str(
            host.submit(
                list(prompts.prompt(seed + offset, 40)),
                max_new_tokens=24 if not sampling else 200,
                ignore_eos=not sampling,
                **({"stream": True} | sampling),
            )
        )

    extra = BESIDE[kind]
    others = [] if extra is None else [submit(500 + i, {**extra}) for i in range(count)]
    while extra and len(host.scheduler.rounds.states) < count:
        host.tick_unchecked()  # a grammar is compiled once
    greedy = [submit(i, {}) for i in range(count)]
    host.tick_unchecked()
    started, turns = time.perf_counter(), 0
    while any(host.answers[rid].finish is None for rid in greedy):
        host.tick_unchecked()
        turns += 1
    spent = time.perf_counter() - started
    tokens = sum(len(host.answers[rid].ids) for rid in greedy)
    for rid in others:
        host.abort(rid)
    while host.tick_unchecked():
        pass
    return {"turn": spent / turns, "tokens": tokens / spent}


def mask_cost(host: Any, repetitions: int) -> dict[str, list[float]]:
    """Milliseconds to fill and to apply a grammar's mask for one position."""
    import torch

    manager, vocab = host.scheduler.grammar_manager, host.scheduler.model_config.vocab_size
    grammar = manager.grammar_backend.dispatch_json(json.dumps(SCHEMA))
    logits = torch.randn(1, vocab)
    times: dict[str, list[float]] = {"fill": [], "apply": []}
    for _ in range(repetitions):
        mask = grammar.allocate_vocab_mask(vocab, 1, "cpu")
        started = time.perf_counter()
        grammar.fill_vocab_mask(mask, 0)
        filled = time.perf_counter()
        grammar.apply_vocab_mask(logits, mask)
        times["fill"].append(1e3 * (filled - started))
        times["apply"].append(1e3 * (time.perf_counter() - filled))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--title", required=True, help="the checkpoint in words")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--count", type=int, default=4, help="requests of each kind")
    arguments = parser.parse_args()
    from inprocess import InProcessEngine  # type: ignore[import-not-found]

    host = InProcessEngine(str(arguments.model.resolve()), *FLAGS)
    prompts = RandomTokens(arguments.model)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in BESIDE}
    measure(host, prompts, "greedy", 1, arguments.count)
    for repetition in range(arguments.repetitions):
        for kind in list(BESIDE)[:: 1 if repetition % 2 else -1]:
            seed = 10_000 + 1000 * repetition
            result = measure(host, prompts, kind, seed, arguments.count)
            found[kind].append(result)
            print(kind, result, file=sys.stderr, flush=True)
    alone = statistics.median(r["tokens"] for r in found["greedy"])
    rows = []
    for kind, results in found.items():
        speeds = [r["tokens"] for r in results]
        rows.append(
            [
                kind,
                report.summary([1e3 * r["turn"] for r in results], 1),
                report.summary(speeds, 1),
                f"{statistics.median(speeds) / alone:.2f}",
            ]
        )
    masks = mask_cost(host, 50)
    report.write(
        NAME,
        "Rows that ask for more, and the rows beside them",
        MODULE,
        [
            f"Checkpoint: {arguments.title}. {arguments.count} greedy requests of 24 tokens, one "
            f"token per step, beside {arguments.count} others that run on. Median (least - "
            f"greatest) of {arguments.repetitions} repetitions. Flags of "
            f"`{in_words(OURS, FLAGS)}`.",
            report.table(
                ["beside", "ms per step, all rows", "greedy tokens/s", "of that beside greedy"],
                rows,
            ),
            "A grammar's mask for one position at this vocabulary, on the host: "
            + ", ".join(f"{name} {report.summary(ms, 3)} ms" for name, ms in masks.items())
            + ".",
        ],
    )


if __name__ == "__main__":
    main()
