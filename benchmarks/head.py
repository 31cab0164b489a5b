"""What lm_head and its statistics cost on this CPU, and what the product alone costs.

`python -m benchmarks.head`. The floor of a denoise step: no engine can be faster than the product
of the masked positions with the weights of the head. Three ways to the same numbers, in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks import report
from llada_sglang.decoding.statistics import shard_statistics
from llada_sglang.kernels.head_statistics import head_statistics

MODULE = "benchmarks.head"
NAME = "head"
VOCABULARY, MASK_ID = 157_184, 156_895


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--positions", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64, 128, 512])
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, arguments.hidden, generator=generator) * 0.05
    rows = []
    for positions in arguments.positions:
        hidden = torch.randn(positions, arguments.hidden, generator=generator)
        columns = hidden.t()
        product = torch.empty(VOCABULARY, positions)
        ways: dict[str, Callable[[], object]] = {
            "product": lambda w=weight, c=columns, p=product: torch.mm(w, c, out=p),
            "one pass": lambda h=hidden, w=weight: head_statistics(
                h, w, vocab_start=0, mask_id=MASK_ID
            ),
            "logits first": lambda h=hidden, w=weight: shard_statistics(
                torch.nn.functional.linear(h, w), vocab_start=0, mask_id=MASK_ID
            ),
            "softmax, as stock": lambda h=hidden, w=weight: torch.softmax(
                torch.nn.functional.linear(h, w), dim=-1
            ).max(dim=-1),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repetition in range(arguments.repetitions + 1):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                if repetition:
                    times[name].append(1e3 * (time.perf_counter() - started))
        operations = 2 * positions * VOCABULARY * arguments.hidden
        fastest = 1e-6 * operations / min(times["product"])
        rows.append([positions, *(report.summary(t, 1) for t in times.values()), f"{fastest:.0f}"])
    report.write(
        NAME,
        "lm_head and its statistics on a CPU",
        MODULE,
        [
            f"Vocabulary {VOCABULARY}, hidden size {arguments.hidden}, float32, "
            f"{torch.get_num_threads()} threads. Milliseconds, median (least - greatest) of "
            f"{arguments.repetitions}, ways in turn. Product: the BLAS alone, in its fastest "
            "order, nothing reduced: the floor.",
            report.table(["positions", *ways, "GFLOP/s of the product"], rows),
        ],
    )


if __name__ == "__main__":
    main()
