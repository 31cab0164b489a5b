"""Ours against stock in one run: `python -m benchmarks.throughput --model DIR --workload random`.

One server is up at a time. In every repetition both are started and measured, the one after the
other, and the order turns. Both get the same prompts; a speed is shown only where they gave the
same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import arrivals, report
from benchmarks.client import Reply, Task, ask_all
from benchmarks.comparison import HEADER, Cell
from benchmarks.engines import (
    OURS,
    REPOSITORY,
    STOCK,
    Server,
    in_words,
    scheduler_process,
    serve,
    spec,
)
from benchmarks.workloads import WORKLOADS, ChatTasks, RandomTokens

MODULE = "benchmarks.throughput"
SECTIONS = ("concurrency", "first-block", "output-length", "arrivals")
TOKENS_PER_SECOND = "output tokens/s, concurrent"
BLOCK = 32
MIB = 1 << 20


@dataclass(slots=True)
class Bench:
    """What was measured so far.

    cells: by what was measured and at which size. waiting: replies of the engine that went first
    in the running repetition, until the other one has answered the same requests.
    """

    workload: RandomTokens | ChatTasks
    arguments: argparse.Namespace
    cells: dict[tuple[str, int], Cell] = field(default_factory=dict)
    waiting: dict[tuple[str, int], dict[str, Sequence[Reply]]] = field(default_factory=dict)
    memory: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], STOCK: []})
    forwards: list[float] = field(default_factory=list)
    windows: dict[str, list[arrivals.Windows]] = field(default_factory=dict)

    def visit(self, engine: str, server: Server, repetition: int) -> None:
        """Run all sections once against one engine."""
        for size in (1, 2):
            # Compile and touch what a first request does.
            warm = [Task(self.workload.prompt(90 + i, 96), 32) for i in range(size)]
            _ask(server, warm, size)
        for section in self.arguments.sections:
            getattr(self, "_" + section.replace("-", "_"))(engine, server, repetition)

    def memory_cell(self) -> Cell | None:
        """Memory at the greatest concurrency, shown where the tokens were the same."""
        size = max(self.arguments.concurrency)
        measured = self.cells.get((TOKENS_PER_SECOND, size))
        if measured is None:
            return None
        cell = Cell("memory beyond idle, MiB, running", size, larger_is_better=False, digits=0)
        cell.values, cell.differences = self.memory, measured.differences
        cell.errors, cell.requests = measured.errors, measured.requests
        return cell

    def _concurrency(self, engine: str, server: Server, repetition: int) -> None:
        """Output tokens per second, and memory at the greatest concurrency."""
        for size in self.arguments.concurrency:
            tasks = self.workload.short(100 + 10 * size + repetition, size)
            before = _reset_peak(server)
            replies = _ask(server, tasks, size)
            if size == max(self.arguments.concurrency):
                self.memory[engine].append((_peak(server) - before) / MIB)
            if engine == OURS:
                self.forwards += [
                    reply.meta["denoise_forwards"] / (len(reply.output_ids) // BLOCK)
                    for reply in replies
                    if reply.error is None and len(reply.output_ids) % BLOCK == 0
                ]
            cell = self._cell(TOKENS_PER_SECOND, size, larger_is_better=True, digits=1)
            self._add(cell, engine, repetition, replies, _tokens_per_second)

    def _first_block(self, engine: str, server: Server, repetition: int) -> None:
        """Seconds from sending a prompt to the first tokens, one request at a time."""
        for length in self.arguments.prompts:
            task = Task(self.workload.prompt(200 + repetition, length), BLOCK)
            replies = _ask(server, [task], 1, stream=True)
            cell = self._cell("s to first block, prompt tokens", length, larger_is_better=False)
            self._add(cell, engine, repetition, replies, lambda replies: replies[0].first)

    def _output_length(self, engine: str, server: Server, repetition: int) -> None:
        """Seconds to the end of an answer of fixed length, one request at a time."""
        for length in self.arguments.outputs:
            task = Task(self.workload.prompt(300 + repetition, 64), length)
            replies = _ask(server, [task], 1, stream=True)
            cell = self._cell("s to the end, output tokens", length, larger_is_better=False)
            self._add(cell, engine, repetition, replies, lambda replies: replies[0].seconds)

    def _arrivals(self, engine: str, server: Server, repetition: int) -> None:
        """Block latency of running requests, alone and beside arriving prompts."""
        seconds, length = self.arguments.window, self.arguments.arriving_prompt
        seed = 1000 * (repetition + 1)
        running = [self.workload.prompt(seed + i, 64) for i in range(self.arguments.running)]
        arriving = [self.workload.prompt(seed + 500 + i, length) for i in range(int(seconds))]
        windows = asyncio.run(arrivals.measure(server.url, running, arriving, seconds=seconds))
        self.windows.setdefault(engine, []).append(windows)
        print(f"arrivals: {engine} {windows.alone} {windows.loaded}", file=sys.stderr, flush=True)

    def _cell(self, what: str, size: int, *, larger_is_better: bool, digits: int = 2) -> Cell:
        fresh = Cell(what, size, larger_is_better, digits)
        return self.cells.setdefault((what, size), fresh)

    def _add(
        self,
        cell: Cell,
        engine: str,
        repetition: int,
        replies: Sequence[Reply],
        figure: Callable[[Sequence[Reply]], float],
    ) -> None:
        errors = [reply.error for reply in replies if reply.error]
        spent = max(r.ended for r in replies) - min(r.started for r in replies)
        print(
            f"{cell.what} {cell.size}: {engine} {spent:.2f} s, {len(errors)} errors {errors[:1]}",
            file=sys.stderr,
            flush=True,
        )
        by_engine = self.waiting.setdefault((cell.what, cell.size), {})
        by_engine[engine] = replies
        if len(by_engine) == 2:
            cell.add(repetition, self.waiting.pop((cell.what, cell.size)), figure)


def _ask(
    server: Server, tasks: Sequence[Task], concurrency: int, *, stream: bool = False
) -> list[Reply]:
    return asyncio.run(ask_all(server.url, tasks, concurrency=concurrency, stream=stream))


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


def _arrival_differences(bench: Bench) -> list[str]:
    """Running requests whose tokens differ, as far as both engines came."""
    found = []
    pairs = zip(bench.windows.get(OURS, ()), bench.windows.get(STOCK, ()), strict=False)
    for repetition, (ours, stock) in enumerate(pairs):
        for request, (a, b) in enumerate(zip(ours.output_ids, stock.output_ids, strict=True)):
            length = min(len(a), len(b))
            if a[:length] != b[:length]:
                found.append(f"run {repetition + 1} request {request + 1}")
    return found


def _arrival_rows(bench: Bench) -> list[list[str]]:
    rows = []
    for engine, pairs in bench.windows.items():
        for label, place in (("alone", 0), ("with arrivals", 1)):
            windows = [(pair.alone, pair.loaded)[place] for pair in pairs]
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


def write(bench: Bench, flags: dict[str, tuple[str, ...]], repetitions: int) -> None:
    """Write the report from the repetitions that are complete."""
    arguments = bench.arguments
    memory = bench.memory_cell()
    parts = [
        f"Checkpoint: {arguments.title}. {bench.workload.words()} Median (least - greatest) of "
        f"{repetitions} repetitions, engines in turn, one server up at a time, started anew for "
        "each; float32; output tokens only; every prompt is new to the cache. "
        "A speed is shown only where both gave the same token ids.",
        f"- ours: `{in_words(OURS, flags[OURS])}`\n- stock: `{in_words(STOCK, flags[STOCK])}`. "
        "No plugin is loaded: model class, scheduler, attention and decoding are SGLang's own. "
        "SGLANG_PLATFORM keeps our CPU platform, without which SGLang does not start on a CPU "
        "that has no AMX.",
    ]
    rows = [cell.row() for cell in bench.cells.values()]
    if memory is not None:
        rows.append(memory.row())
    parts.append(report.table(HEADER, rows))
    if memory is not None:
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
        differing = _arrival_differences(bench)
        if differing:
            parts.append(f"No latency is shown: tokens differ in {'; '.join(differing[:4])}.")
        else:
            parts.append(report.table(header, _arrival_rows(bench)))
    parts.append(f"![plots]({arguments.name}.png)")
    report.write(arguments.name, f"Throughput: {arguments.title}", MODULE, parts)
    _draw(bench)


def _draw(bench: Bench) -> None:
    kinds = list(dict.fromkeys(c.what for c in bench.cells.values() if c.medians() is not None))
    figure, axes = report.plots(max(1, len(kinds) + bool(bench.windows)))
    for axis, kind in zip(axes, kinds, strict=False):
        chosen = [c for c in bench.cells.values() if c.what == kind and c.medians() is not None]
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
        labels: list[str] = []
        values: list[list[float]] = []
        for engine, pairs in bench.windows.items():
            for label, place in (("alone", 0), ("arrivals", 1)):
                labels.append(f"{engine}\n{label}")
                windows = [(pair.alone, pair.loaded)[place] for pair in pairs]
                values.append([s for window in windows for s in window.samples()] or [1e-3])
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
    logs = REPOSITORY / "build" / "benchmark-logs"
    logs.mkdir(parents=True, exist_ok=True)
    bench = Bench(WORKLOADS[arguments.workload](arguments.model), arguments)
    for repetition in range(arguments.repetitions):
        for engine in (OURS, STOCK) if repetition % 2 else (STOCK, OURS):
            log = logs / f"{arguments.name}-{engine}.log"
            with serve(spec(engine, arguments.model, flags[engine]), log) as server:
                bench.visit(engine, server, repetition)
        write(bench, flags, repetition + 1)


if __name__ == "__main__":
    main()
