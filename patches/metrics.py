"""What the host measures of its scheduler."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.managers.scheduler_components.metrics_reporter:SchedulerMetricsReporter",
        kind=Kind.SUBCLASS,
        why="the host books denoise steps as prefills, shows no running diffusion request and no "
        "throughput, and logs a line for every forward",
        how="reports rounds: sets the host's gauges and counters from them, adds forwards and rows "
        "by kind and tokens per forward, logs one line per interval; created by the host's own "
        "override point, init_metrics_reporter",
        remove_when="the host's diffusion path reports steps as decode",
        fingerprints={
            "0.5.23": "sha256:2df953c9d34d245639e3b900166a14a799244214c759adcc8beb28d38f03f7e9",
        },
    ),
    Patch(
        target="sglang.srt.observability.metrics_collector:SchedulerMetricsCollector",
        kind=Kind.USE,
        why="its counters and gauges are told of diffusion rounds",
        fingerprints={
            "0.5.23": "sha256:1d96e0354aa39d3b1fce56d3ce2474c0f1ca335de35ca723cb6aed60e659c6d2",
        },
    ),
    Patch(
        target="sglang.srt.observability.metrics_collector:QueueCount",
        kind=Kind.USE,
        why="counts requests by priority",
        fingerprints={
            "0.5.23": "sha256:e8606ae17a63aedb280ba9d62df219e2bb3c46bfa45f55ed7cab9c6844e59113",
        },
    ),
)
