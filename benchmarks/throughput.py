"""Ours against stock in one run: `python -m benchmarks.throughput --model DIR --workload random`.

Both servers are up, one is measured at a time, in turn, and the order turns with every repetition.
Both get the same prompts; a speed is shown only where they gave the same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import arrivals, report
from benchmarks.client import Reply, Task, ask_all
from benchmarks.comparison import HEADER, Cell
from benchmarks.engines import OURS, REPOSITORY, STOCK, Server, both, in_words, scheduler_process
from benchmarks.workloads import WORKLOADS, ChatTasks, RandomTokens

MODULE = "benchmarks.throughput"
SECTIONS = ("concurrency", "first-block", "output-length", "arrivals")
MIB = 1 << 20


@dataclass(slots=True)
class Bench:
    """Both servers and what was measured so far."""

    servers: dict[str, Server]
    workload: RandomTokens | ChatTasks
    arguments: argparse.Namespace
    cells: list[Cell] = field(default_factory=list)
    memory: Cell | None = None
    forwards: list[float] = field(default_factory=list)
    windows: dict[str, list[tuple[arrivals.Window, arrivals.Window]]] = field(default_factory=dict)

    def in_turn(self, repetition: int) -> Sequence[str]:
        return (OURS, STOCK) if repetition % 2 else (STOCK, OURS)

    def ask(
        self, engine: str, tasks: Sequence[Task], concurrency: int, stream: bool
    ) -> list[Reply]:
        url = self.servers[engine].url
        return asyncio.run(ask_all(url, tasks, concurrency=concurrency, stream=stream))

    def warm_up(self) -> None:
        """Compile and touch what a first request does, in both servers."""
        for engine in self.servers:
            for size in (1, 2):
                tasks = [Task(self.workload.prompt(90 + i, 96), 32) for i in range(size)]
                self.ask(engine, tasks, size, False)

    def concurrency(self) -> None:
        """Output tokens per second, and memory at the greatest concurrency."""
        for size in self.arguments.concurrency:
            cell = Cell("output tokens/s, concurrent", size, larger_is_better=True, digits=1)
            self.cells.append(cell)
            memory = Cell("memory beyond idle, MiB, running", size, False, digits=0)
            for repetition in range(self.arguments.repetitions):
                tasks = self.workload.short(100 + 10 * size + repetition, size)
                replies: dict[str, Sequence[Reply]] = {}
                for engine in self.in_turn(repetition):
                    before = _reset_peak(self.servers[engine])
                    replies[engine] = self.ask(engine, tasks, size, False)
                    peak = _peak(self.servers[engine])
                    memory.values[engine].append((peak - before) / MIB)
                    self._note(cell, engine, replies[engine])
                cell.add(repetition, replies, _tokens_per_second)
                self.forwards += [
                    reply.meta["denoise_forwards"] / -(-len(reply.output_ids) // 32)
                    for reply in replies[OURS]
                    if reply.error is None and len(reply.output_ids) % 32 == 0
                ]
            memory.differences, memory.errors = cell.differences, cell.errors
            memory.requests = cell.requests
            self.memory = memory

    def first_block(self) -> None:
        """Seconds from sending a prompt to the first tokens, one request at a time."""
        for length in self.arguments.prompts:
            cell = Cell("s to first block, prompt tokens", length, larger_is_better=False)
            self.cells.append(cell)
            for repetition in range(self.arguments.repetitions):
                task = Task(self.workload.prompt(200 + repetition, length), 32)
                self._repeat(cell, repetition, task, lambda replies: replies[0].first)

    def output_length(self) -> None:
        """Seconds to the end of an answer of fixed length, one request at a time."""
        for length in self.arguments.outputs:
            cell = Cell("s to the end, output tokens", length, larger_is_better=False)
            self.cells.append(cell)
            for repetition in range(self.arguments.repetitions):
                task = Task(self.workload.prompt(300 + repetition, 64), length)
                self._repeat(cell, repetition, task, lambda replies: replies[0].seconds)

    def arrivals(self) -> None:
        """Block latency of running requests, alone and beside arriving prompts."""
        seconds, length = self.arguments.window, self.arguments.arriving_prompt
        for repetition in range(self.arguments.repetitions):
            for engine in self.in_turn(repetition):
                seed = 1000 * (repetition + 1)
                running = [
                    self.workload.prompt(seed + i, 64) for i in range(self.arguments.running)
                ]
                arriving = [
                    self.workload.prompt(seed + 500 + i, length) for i in range(int(seconds))
                ]
                server = self.servers[engine]
                pair = asyncio.run(arrivals.measure(server.url, running, arriving, seconds=seconds))
                self.windows.setdefault(engine, []).append(pair)
                print(f"arrivals {engine}: {pair}", file=sys.stderr, flush=True)
                self._settle(engine)

    def _settle(self, engine: str) -> None:
        """Wait until the server has dropped what was aborted: a small request runs alone."""
        started = time.monotonic()
        seed = random.randrange(1 << 30)
        self.ask(engine, [Task(self.workload.prompt(seed, 32), 1)], 1, False)
        print(f"settled in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

    def _repeat(
        self,
        cell: Cell,
        repetition: int,
        task: Task,
        figure: Callable[[Sequence[Reply]], float],
    ) -> None:
        replies: dict[str, Sequence[Reply]] = {}
        for engine in self.in_turn(repetition):
            replies[engine] = self.ask(engine, [task], 1, True)
            self._note(cell, engine, replies[engine])
        cell.add(repetition, replies, figure)

    def _note(self, cell: Cell, engine: str, replies: Sequence[Reply]) -> None:
        errors = [reply.error for reply in replies if reply.error]
        spent = max(r.ended for r in replies) - min(r.started for r in replies)
        print(
            f"{cell.what} {cell.size}: {engine} {spent:.2f} s, {len(errors)} errors {errors[:1]}",
            file=sys.stderr,
            flush=True,
        )


def _tokens_per_second(replies: Sequence[Reply]) -> float:
    tokens = sum(len(reply.output_ids) for reply in replies)
    return tokens / (max(r.ended for r in replies) - min(r.started for r in replies))


def _reset_peak(server: Server) -> int:
    """Forget the scheduler's peak of resident memory; returns what is resident now, bytes."""
    process = scheduler_process(server)
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(process.memory_info().rss)


def _peak(server: Server) -> int:
    """The scheduler's peak of resident memory since the reset, bytes."""
    status = Path(f"/proc/{scheduler_process(server).pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _arrival_rows(bench: Bench) -> list[list[str]]:
    rows = []
    for engine, pairs in bench.windows.items():
        for label, place in (("alone", 0), ("with arrivals", 1)):
            windows = [pair[place] for pair in pairs]
            pooled = [sample for window in windows for sample in window.samples()]
            bound = "at least " if any(window.censored() for window in windows) else ""
            tails = [report.percentile(w.samples(), 0.99) for w in windows if w.samples()]
            rows.append(
                [
                    engine,
                    label,
                    str(len(pooled)),
                    f"{report.percentile(pooled, 0.5):.2f}" if pooled else report.MISSING,
                    bound + report.summary(tails),
                    report.summary([w.tokens / w.seconds for w in windows], 1),
                    f"{sum(w.prompts_done for w in windows)} of "
                    f"{sum(w.prompts_sent for w in windows)}",
                ]
            )
    return rows


def write(bench: Bench, flags: dict[str, tuple[str, ...]]) -> None:
    """Write the report from what was measured so far."""
    arguments = bench.arguments
    parts = [
        f"Checkpoint: {arguments.title}. {bench.workload.words()} Median (least - greatest) of "
        f"{arguments.repetitions} repetitions, engines in turn, both servers up and the other one "
        "idle; float32; output tokens only; every prompt is new to the cache. "
        "A speed is shown only where both gave the same token ids.",
        f"- ours: `{in_words(OURS, flags[OURS])}`\n- stock: `{in_words(STOCK, flags[STOCK])}`. "
        "No plugin is loaded: model class, scheduler, attention and decoding are SGLang's own. "
        "SGLANG_PLATFORM keeps our CPU platform, without which SGLang does not start on a CPU "
        "that has no AMX.",
    ]
    rows = [cell.row() for cell in bench.cells if any(cell.values.values())]
    if bench.memory is not None:
        rows.append(bench.memory.row())
    parts.append(report.table(HEADER, rows))
    if bench.memory is not None:
        parts.append(
            "Memory: peak resident memory of the scheduler process during the run minus what was "
            "resident, weights and pool included, when it was idle just before."
        )
    if bench.forwards:
        parts.append(
            "Forwards per block, ours, as the responses report them (whole blocks only): "
            f"{report.summary(bench.forwards)}. Stock does not report them; benchmarks/steps.py "
            "counts both."
        )
    if bench.windows:
        header = ("engine", "requests", "blocks", "p50, s", "p99, s", "output tokens/s", "prompts")
        parts.append(
            "## Running requests while prompts arrive\n\n"
            f"{arguments.running} running requests; windows of {arguments.window} s, first alone, "
            f"then with a new prompt of {arguments.arriving_prompt} tokens every second, which "
            "asks for one output token. Block latency is the time between two blocks of a request; "
            '"at least" where a request was still waiting, longer than for any block, when the '
            "window closed. p99 per repetition; prompts: answered within the window."
        )
        parts.append(report.table(header, _arrival_rows(bench)))
    parts.append(f"![plots]({arguments.name}.png)")
    report.write(arguments.name, f"Throughput: {arguments.title}", MODULE, parts)
    _draw(bench)


def _draw(bench: Bench) -> None:
    kinds = list(dict.fromkeys(c.what for c in bench.cells if c.medians() is not None))
    figure, axes = report.plots(max(1, len(kinds) + bool(bench.windows)))
    for axis, kind in zip(axes, kinds, strict=False):
        chosen = [c for c in bench.cells if c.what == kind and c.medians() is not None]
        for engine, marker in ((OURS, "o-"), (STOCK, "s--")):
            medians = [statistics.median(c.values[engine]) for c in chosen]
            spread = [
                [m - min(c.values[engine]) for m, c in zip(medians, chosen, strict=True)],
                [max(c.values[engine]) - m for m, c in zip(medians, chosen, strict=True)],
            ]
            axis.errorbar([c.size for c in chosen], medians, spread, fmt=marker, label=engine)
        figure_name, _, unit = kind.partition(", ")
        axis.set(xlabel=unit, ylabel=figure_name, xscale="log", yscale="log")
        axis.set_xticks([c.size for c in chosen], [str(c.size) for c in chosen], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    if bench.windows:
        labels, values = [], []
        for engine, pairs in bench.windows.items():
            for label, place in (("alone", 0), ("arrivals", 1)):
                labels.append(f"{engine}\n{label}")
                values.append([s for pair in pairs for s in pair[place].samples()] or [0.0])
        axes[-1].boxplot(values)
        axes[-1].set_xticklabels(labels, fontsize=7)
        axes[-1].set(ylabel="block latency, s", yscale="log")
        axes[-1].grid(alpha=0.3, axis="y")
    report.save(figure, bench.arguments.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--name", required=True, help="of the report: benchmarks/results/NAME.md")
    parser.add_argument("--title", required=True, help="the checkpoint in words")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--outputs", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--running", type=int, default=4, help="requests while prompts arrive")
    parser.add_argument("--arriving-prompt", type=int, default=2048)
    parser.add_argument("--window", type=float, default=12.0, help="seconds")
    parser.add_argument("--flags", default="--max-running-requests 32 --max-total-tokens 65536")
    parser.add_argument("--stock-flags", default="", help="more flags of stock alone")
    arguments = parser.parse_args()
    common = ("--dtype", "float32", *arguments.flags.split())
    flags = {OURS: common, STOCK: (*common, *arguments.stock_flags.split())}
    logs = REPOSITORY / "build" / "benchmark-logs" / arguments.name
    with both(arguments.model, logs, ours=flags[OURS], stock=flags[STOCK]) as servers:
        bench = Bench(servers, WORKLOADS[arguments.workload](arguments.model), arguments)
        bench.warm_up()
        for section in arguments.sections:
            getattr(bench, section.replace("-", "_"))()
            write(bench, flags)


if __name__ == "__main__":
    main()
