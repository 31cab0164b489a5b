"""What the device did between two moments: busy, idle, and with what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

HOST_GAP = 5e-6
"""Kernels inside one graph are 1 to 1.5 us apart while they are profiled; the device waits longer
than this only for the host, whose quickest launch takes about as long."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Seconds. span: from the first operation's begin to the last one's end; idle: of it, nothing
    ran; waiting: of that, in gaps of HOST_GAP or more."""

    span: float
    idle: float
    waiting: float

    @property
    def idle_share(self) -> float:
        return self.idle / self.span if self.span else 0.0

    @property
    def waiting_share(self) -> float:
        return self.waiting / self.span if self.span else 0.0


def activity(intervals: Iterable[tuple[float, float]]) -> Activity:
    """How long nothing ran. intervals: (begin, end) of device operations, which may overlap."""
    ordered = sorted(intervals)
    if not ordered:
        return Activity(0.0, 0.0, 0.0)
    first, reached = ordered[0][0], ordered[0][0]
    gaps = []
    for begin, end in ordered:
        gaps.append(max(0.0, begin - reached))
        reached = max(reached, end)
    return Activity(reached - first, sum(gaps), sum(gap for gap in gaps if gap >= HOST_GAP))


def of_profile(profile: Any) -> tuple[Activity, list[tuple[str, float, int]]]:
    """The device's activity in a torch.profiler profile, and (kernel, seconds, calls)."""
    from torch.autograd import DeviceType

    intervals: list[tuple[float, float]] = []
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in profile.events():
        if event.device_type != DeviceType.CUDA:
            continue
        begin, end = event.time_range.start / 1e6, event.time_range.end / 1e6
        intervals.append((begin, end))
        seconds[event.name] += end - begin
        calls[event.name] += 1
    longest = sorted(seconds, key=lambda name: -seconds[name])
    return activity(intervals), [(name, seconds[name], calls[name]) for name in longest]
