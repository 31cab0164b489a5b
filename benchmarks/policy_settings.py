"""What is measured of the decoding policies: sections, their checkpoints and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import write_plain, write_wide
from benchmarks.engines import OURS, REPOSITORY, STOCK

NANO = REPOSITORY / "llada_sglang" / "nano"
BUILT = REPOSITORY / "build" / "checkpoints"
CONCURRENCIES = (1, 8, 32)
FLOAT32 = (
    *("--dtype", "float32", "--max-running-requests", "32"),
    *("--max-total-tokens", "65536"),
)

Decoding = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to decode.

    decoding: custom_params of every request to ours. algorithm: stock's instead, with its
    configuration. twin: label of the setting of ours that has to give the same tokens.
    """

    decoding: Decoding = field(default_factory=dict)
    algorithm: str = ""
    configuration: Decoding = field(default_factory=dict)
    twin: str = ""

    @property
    def engine(self) -> str:
        return STOCK if self.algorithm else OURS

    @property
    def label(self) -> str:
        """Policy and parameters in a line; a parameter named as its policy is not named twice."""
        chosen = self.configuration if self.algorithm else self.decoding
        policy = str(chosen.get("policy", ""))
        parts = [f"stock {self.algorithm}"] if self.algorithm else [policy]
        for name, value in chosen.items():
            if name == "policy":
                continue
            if not self.algorithm and name == policy and len(parts) == 1:
                parts[0] = f"{policy} {value}"
            else:
                parts.append(f"{name} {value}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Section:
    """A checkpoint and the settings that are compared on it, in turn on one server per engine.

    made: kind of `benchmarks.checkpoints` that `nano` is rewritten as, empty for nano itself.
    every: one in so many questions is asked for accuracy. concurrencies: at which it is timed.
    """

    name: str
    title: str
    nano: str
    settings: tuple[Setting, ...]
    made: str = ""
    flags: tuple[str, ...] = ()
    every: int = 1
    concurrencies: tuple[int, ...] = CONCURRENCIES

    def checkpoint(self) -> Path:
        """The directory to serve; written under build/checkpoints first where it has to be."""
        source = NANO / self.nano
        if not self.made:
            return source
        out = BUILT / f"{self.made}-{self.nano.replace('checkpoint', 'nano')}"
        written = out / "generation_config.json"
        if not written.is_file() or written.stat().st_mtime < _newest(source):
            {"plain": write_plain, "wide": write_wide}[self.made](source, out)
        return out


def _newest(directory: Path) -> float:
    return max(file.stat().st_mtime for file in directory.iterdir())


def _ours(*decodings: Decoding) -> tuple[Setting, ...]:
    return tuple(Setting(decoding) for decoding in decodings)


THRESHOLD: Decoding = {"policy": "threshold", "threshold": 0.95}
AHEAD: Decoding = {**THRESHOLD, "lookahead": 2}
AUTO: Decoding = {**THRESHOLD, "lookahead": "auto"}
QUALITY: Decoding = {"policy": "edit", "preset": "quality"}
SPEED: Decoding = {"policy": "edit", "preset": "speed"}
LEVENSHTEIN: Decoding = {"policy": "levenshtein"}


def _joint(twin: Decoding, threshold: float, edit_threshold: float) -> Setting:
    return Setting(
        algorithm="JointThreshold",
        configuration={"threshold": threshold, "edit_threshold": edit_threshold},
        twin=Setting(twin).label,
    )


SECTIONS = (
    Section(
        "checkpoint",
        "The base nano",
        "checkpoint",
        _ours(
            THRESHOLD,
            AHEAD,
            {**AHEAD, "lookahead_start": 0.8},
            {"policy": "threshold", "threshold": 0.8},
            {"policy": "threshold", "threshold": 0.6},
            {"policy": "steps", "steps": 16},
            {"policy": "steps", "steps": 8},
            {"policy": "entropy", "gamma": 0.05},
            {"policy": "entropy", "gamma": 0.3},
            {"policy": "hierarchical"},
            {"policy": "credit"},
            {"policy": "factor", "factor": 0.5},
            {"policy": "factor", "factor": 1.0},
        ),
    ),
    Section(
        "checkpoint_lookahead",
        "Trained for two blocks in flight",
        "checkpoint_lookahead",
        _ours(
            THRESHOLD,
            AHEAD,
            AUTO,
            {"policy": "factor", "factor": 0.5},
            {"policy": "factor", "factor": 0.5, "lookahead": 2},
        ),
    ),
    Section(
        "checkpoint_edit",
        "Trained to revise, as LLaDA2.1",
        "checkpoint_edit",
        _ours(THRESHOLD, QUALITY, SPEED),
    ),
    Section(
        "checkpoint_levenshtein",
        "Trained to delete and insert, as LLaDA2.2",
        "checkpoint_levenshtein",
        _ours(THRESHOLD, LEVENSHTEIN),
    ),
    Section(
        "stock_threshold",
        "Against stock: the base nano",
        "checkpoint",
        (
            *_ours(THRESHOLD),
            Setting(
                algorithm="LowConfidence",
                configuration={"threshold": 0.95},
                twin=Setting(THRESHOLD).label,
            ),
        ),
        made="plain",
        flags=FLOAT32,
    ),
    Section(
        "stock_edit",
        "Against stock: the one trained to revise",
        "checkpoint_edit",
        (
            *_ours(QUALITY, SPEED),
            _joint(QUALITY, 0.7, 0.5),
            _joint(SPEED, 0.5, 0.0),
        ),
        made="plain",
        flags=FLOAT32,
    ),
    Section(
        "wide_lookahead",
        "Where the forward dominates: two blocks in flight at a vocabulary of 157184",
        "checkpoint_lookahead",
        _ours(THRESHOLD, AHEAD, AUTO),
        made="wide",
        flags=FLOAT32,
        every=10,
        concurrencies=(1,),
    ),
)
