"""What a diffusion server tells Prometheus and its log about its forwards."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.scheduler_components.metrics_reporter import SchedulerMetricsReporter
from sglang.srt.observability.metrics_collector import QueueCount

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

    from llada_sglang.scheduler.tally import Tally

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0
"""How old the gauges may get while something runs."""

ROW_BUCKETS = tuple(1 << i for i in range(11))
TPF_BUCKETS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(slots=True)
class Window:
    """Sums since the last log line. busy: seconds in which something ran."""

    forwards: int = 0
    prefill_rows: int = 0
    denoise_rows: int = 0
    commit_rows: int = 0
    output_tokens: int = 0
    retracted: int = 0
    busy: float = 0.0

    def add(self, tally: Tally, seconds: float) -> None:
        """Add a round that ended `seconds` after the one before it."""
        self.forwards += tally.forwards
        self.prefill_rows += tally.prefill_rows
        self.denoise_rows += tally.denoise_rows
        self.commit_rows += tally.commit_rows
        self.output_tokens += tally.output_tokens
        self.retracted += tally.retracted
        self.busy += seconds

    @property
    def throughput(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.busy if self.busy else 0.0

    def __str__(self) -> str:
        forwards = max(1, self.forwards)
        rows = self.prefill_rows + self.denoise_rows + self.commit_rows
        return (
            f"#forward: {self.forwards}, rows per forward: {rows / forwards:.1f} "
            f"(prefill {self.prefill_rows / forwards:.1f}, "
            f"denoise {self.denoise_rows / forwards:.1f}, "
            f"commit {self.commit_rows / forwards:.1f}), "
            f"tokens per forward: {self.output_tokens / max(1, self.denoise_rows):.2f}, "
            f"#retracted-req: {self.retracted}"
        )


class RowMetrics:
    """The Prometheus series the host has no name for.

    `sglang:llada_forwards_total` and `sglang:llada_rows_total` have a label `kind`; a forward is
    counted under every kind it carries rows of. `sglang:llada_rows_per_forward` has every forward
    once. `sglang:llada_tokens_per_forward` has every ended request once: output tokens per
    forward that denoised for it.
    """

    def __init__(self, labels: Mapping[str, Any]) -> None:
        # Not above: the host sets PROMETHEUS_MULTIPROC_DIR before the first import.
        from prometheus_client import Counter, Histogram

        names = list(labels)
        self._labels = dict(labels)
        self._forwards = Counter(
            "sglang:llada_forwards_total",
            "Forwards that carried rows of a kind: prefill, denoise, commit.",
            [*names, "kind"],
        )
        self._rows = Counter(
            "sglang:llada_rows_total",
            "Block rows that were run, by kind: prefill, denoise, commit.",
            [*names, "kind"],
        )
        self._rows_per_forward = Histogram(
            "sglang:llada_rows_per_forward",
            "Block rows in a forward, of all kinds.",
            names,
            buckets=ROW_BUCKETS,
        ).labels(**self._labels)
        self._tokens_per_forward = Histogram(
            "sglang:llada_tokens_per_forward",
            "Output tokens of an ended request per forward that denoised for it.",
            names,
            buckets=TPF_BUCKETS,
        ).labels(**self._labels)
        for kind in ("prefill", "denoise", "commit"):  # so that every series exists from the start
            self._count(kind, 0, 0)

    def add(self, tally: Tally) -> None:
        """Count a round."""
        self._count("prefill", tally.prefill_forwards, tally.prefill_rows)
        self._count("denoise", tally.denoise_forwards, tally.denoise_rows)
        self._count("commit", tally.commit_forwards, tally.commit_rows)
        for rows in tally.rows_per_forward:
            self._rows_per_forward.observe(rows)
        for ratio in tally.ended_tokens_per_forward:
            self._tokens_per_forward.observe(ratio)

    def _count(self, kind: str, forwards: int, rows: int) -> None:
        self._forwards.labels(**self._labels, kind=kind).inc(forwards)
        self._rows.labels(**self._labels, kind=kind).inc(rows)


class DiffusionReporter(SchedulerMetricsReporter):
    """The host's reporter, told of rounds of block rows instead of prefill and decode batches.

    The host would count every denoise step as a prefill, report no running request and no
    throughput, and print a line for every forward. Here its gauges (running, queued, token usage,
    throughput, cache hit rate) are set from what runs, at most PUBLISH_SECONDS late, its counters
    (realtime, effective prefill and retracted tokens) get what they are named after, and one line
    is logged every --decode-log-interval forwards.
    """

    num_retracted_reqs: int
    num_paused_reqs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._window = Window()
        self._last_round = self._last_publish = time.monotonic()
        self._row_metrics = (
            RowMetrics(self.metrics_collector.labels)
            if self.current_scheduler_metrics_enabled
            else None
        )

    def report_round(self, batch: ScheduleBatch, tally: Tally) -> None:
        """Count a round that just ended. batch: the requests that still run."""
        now = time.monotonic()
        # Idle time is not time in which too little was generated.
        since = batch.launch_ts if batch.after_idle_gap else self._last_round
        self._last_round = now
        self._window.add(tally, now - since)
        if self._row_metrics is not None:
            self._row_metrics.add(tally)
            self._count_tokens(batch, tally)
        if status_logger := self.scheduler_status_logger:
            status_logger.maybe_dump(batch, self.scheduler.waiting_queue)

        due = self._window.forwards >= self.decode_log_interval
        if due or now - self._last_publish >= PUBLISH_SECONDS:
            self._last_publish = now
            self._publish(batch)
        if due:
            self._log(batch)
            self._window = Window()

    def report_retraction(self, req: Req) -> None:
        """Count a request whose slots were taken back."""
        self.num_retracted_reqs += 1
        if self.current_scheduler_metrics_enabled:
            self.metrics_collector.increment_retracted_reqs(
                num_retracted_reqs=1,
                num_retracted_input_tokens=len(req.origin_input_ids),
                num_retracted_output_tokens=len(req.output_ids),
            )

    def _count_tokens(self, batch: ScheduleBatch, tally: Tally) -> None:
        computed = tally.prompt_tokens - tally.cached_tokens
        self.metrics_collector.increment_realtime_tokens(
            dp_cooperation_info=batch.dp_cooperation_info,
            prefill_compute_tokens=computed,
            prefill_cache_tokens=tally.cached_tokens,
            decode_tokens=tally.output_tokens,
        )
        if tally.prompt_tokens:
            self.metrics_collector.increment_effective_prefill_tokens(
                input_tokens=computed,
                device_hit_tokens=tally.cached_tokens,
                host_hit_tokens=0,
                storage_hit_tokens=0,
            )
            self.stats.cache_hit_rate = tally.cached_tokens / tally.prompt_tokens
            self.recent_cache_hit_rate = self.cache_hit_rate_window.add(
                tally.cached_tokens, tally.prompt_tokens, time.perf_counter()
            )

    def _publish(self, batch: ScheduleBatch) -> None:
        """Set the host's gauges to what is the case now."""
        scheduler, stats = self.scheduler, self.stats
        self.last_decode_stats_tic = time.perf_counter()
        self.last_gen_throughput = self._window.throughput
        if self.current_scheduler_metrics_enabled:
            by_priority = scheduler.enable_priority_scheduling
            stats.num_running_reqs = QueueCount.from_reqs(batch.reqs, by_priority)
            stats.num_queue_reqs = QueueCount.from_reqs(scheduler.waiting_queue, by_priority)
            stats.num_grammar_queue_reqs = len(scheduler.grammar_manager)
            stats.gen_throughput = self.last_gen_throughput
            stats.new_token_ratio = scheduler.new_token_ratio_tracker.current
            stats.decode_sum_seq_lens = sum(req.seqlen for req in batch.reqs)
            stats.num_retracted_reqs = self.num_retracted_reqs
            stats.num_paused_reqs = self.num_paused_reqs
            self.num_retracted_reqs = self.num_paused_reqs = 0
            scheduler.pool_stats_observer.get_pool_stats().update_scheduler_stats(stats)
            self._calculate_utilization()
            stats.fwd_occupancy = self.fwd_occupancy
            self.metrics_collector.log_stats(stats)
            scheduler.kv_events_publisher.emit_kv_metrics()
        scheduler.kv_events_publisher.publish_kv_events()

    def _log(self, batch: ScheduleBatch) -> None:
        if not self.is_stats_logging_rank:
            return
        usage = self.scheduler.pool_stats_observer.get_pool_stats().get_decode_usage_msg_parts()
        logger.info(
            "Diffusion batch, #running-req: %d, #queue-req: %d, %s, "
            "gen throughput (token/s): %.2f, %s",
            len(batch.reqs),
            len(self.scheduler.waiting_queue),
            ", ".join(usage),
            self._window.throughput,
            self._window,
        )
