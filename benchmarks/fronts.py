"""Accuracy against tokens per forward: points, and the front of those no other point beats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import report

WIDTH, HEIGHT = 10.0, 3.2
"""Of one panel, in inches; its legend takes the right third."""

CROWD, WITHIN = 5, (1.25, 0.02)
"""From so many points that are no further than that from the middle one (ratio of tokens per
forward, difference of accuracy) on, a panel of their own shows them magnified."""

NEAR, FAR, ANGLES = 9.0, 33.0, 16
"""Where a number may stand around its point: distances in points, directions."""


@dataclass(frozen=True, slots=True)
class Point:
    """A setting: tokens per forward, accuracy in [0, 1], over how many questions."""

    label: str
    speed: float
    accuracy: float
    count: int
    stock: bool = False

    def beaten_by(self, other: Point) -> bool:
        """Whether `other` is as good in both and better in one."""
        mine, others = (self.speed, self.accuracy), (other.speed, other.accuracy)
        return others != mine and all(o >= m for o, m in zip(others, mine, strict=True))


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats, slowest first."""
    best = [p for p in points if not any(p.beaten_by(other) for other in points)]
    return sorted(best, key=lambda p: (p.speed, -p.accuracy))


def crowd(points: Sequence[Point]) -> list[Point]:
    """The points around the middle one, if there are many and others beside them."""
    middle = sorted(points, key=lambda p: p.speed)[len(points) // 2]
    ratio, difference = WITHIN
    near = [
        p
        for p in points
        if 1 / ratio <= p.speed / middle.speed <= ratio
        and abs(p.accuracy - middle.accuracy) <= difference
    ]
    return near if CROWD <= len(near) < len(points) else []


def draw_fronts(name: str, panels: Mapping[str, Sequence[Point]]) -> None:
    """Write benchmarks/results/NAME.png: a panel per title, points numbered, a legend beside."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn: list[tuple[str, Sequence[Point], Sequence[Point]]] = []
    for title, points in panels.items():
        drawn.append((title, points, points))
        if near := crowd(points):
            drawn[-1] = (title, points, [p for p in points if p not in near])
            drawn.append((f"{title}: the crowded part of it", points, near))
    height = HEIGHT * len(drawn)
    figure, axes = plt.subplots(len(drawn), 1, figsize=(WIDTH, height), squeeze=False)
    figure.subplots_adjust(
        left=0.08, right=0.64, top=1 - 0.35 / height, bottom=0.5 / height, hspace=0.45
    )
    for axis, (title, points, numbered) in zip(axes[:, 0], drawn, strict=True):
        _draw(axis, title, points, points if title in panels else numbered)
        figure.canvas.draw()  # settles the scales that the numbers are placed by
        _number(axis, points, numbered)
    report.save(figure, name)


def _draw(axis: Any, title: str, points: Sequence[Point], shown: Sequence[Point]) -> None:
    """All of `points` count for the front and the colours; those in `shown` are drawn."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

    best = front(points)
    line = [p for p in best if p in shown]
    axis.step(
        [p.speed for p in line],
        [100 * p.accuracy for p in line],
        where="pre",
        color="0.6",
        lw=1,
        zorder=1,
    )
    handles = []
    for number, point in enumerate(points, 1):
        if point not in shown:
            continue
        color = f"C{(number - 1) % 10}"
        error = 100 * math.sqrt(point.accuracy * (1 - point.accuracy) / max(1, point.count))
        axis.errorbar(
            point.speed, 100 * point.accuracy, error, color=color, lw=0.8, alpha=0.35, zorder=2
        )
        (handle,) = axis.plot(
            point.speed,
            100 * point.accuracy,
            "s" if point.stock else "o",
            markersize=6,
            color=color,
            markerfacecolor=color if point in best else "white",
            linestyle="none",
            label=f"{number}  {point.label}",
            zorder=3,
        )
        handles.append(handle)
    axis.margins(0.12)
    low, high = min(p.speed for p in shown), max(p.speed for p in shown)
    if high > 3 * low:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.set_xticks([t for t in (1, 2, 3, 4, 6, 8, 10, 12, 16, 20) if low <= t <= high])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set(xlabel="tokens per forward", ylabel="exact match, %")
    axis.set_title(title, fontsize=10, loc="left")
    axis.grid(alpha=0.25)
    axis.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        fontsize=7.5,
        frameon=False,
        labelspacing=0.35,
    )


def _number(axis: Any, points: Sequence[Point], numbered: Sequence[Point]) -> None:
    """Write points' numbers near them, where they hide neither a point nor another number."""
    places = axis.transData.transform([(p.speed, 100 * p.accuracy) for p in points])
    scale = axis.figure.dpi / 72
    taken = [(float(x), float(y)) for x, y in places]
    for number, (point, (x, y)) in enumerate(zip(points, places, strict=True), 1):
        if point not in numbered:
            continue
        dx, dy = free_place((float(x), float(y)), taken, room=9 * scale, scale=scale)
        taken.append((float(x) + dx * scale, float(y) + dy * scale))
        axis.annotate(
            str(number),
            (point.speed, 100 * point.accuracy),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.5", "shrinkA": 4, "shrinkB": 3},
        )


def free_place(
    point: tuple[float, float],
    taken: Sequence[tuple[float, float]],
    *,
    room: float,
    scale: float = 1.0,
) -> tuple[float, float]:
    """An offset from `point`, as near as can be, with nothing of `taken` within `room` of it.

    point, taken, room: pixels; scale: pixels per point; the offset is in points. Where there is no
    such place, the one with most room.
    """
    best, widest = (NEAR, NEAR), -1.0
    distances = [NEAR + 4 * i for i in range(int((FAR - NEAR) / 4) + 1)]
    for distance, step in itertools.product(distances, range(ANGLES)):
        angle = math.pi / 2 + 2 * math.pi * step / ANGLES
        offset = (distance * math.cos(angle), distance * math.sin(angle))
        x, y = point[0] + offset[0] * scale, point[1] + offset[1] * scale
        space = min(math.hypot(x - a, y - b) for a, b in taken)
        if space >= room:
            return offset
        if space > widest:
            best, widest = offset, space
    return best
