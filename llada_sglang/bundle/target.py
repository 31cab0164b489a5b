"""The machine a bundle is for: which wheels run there."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from llada_sglang.bundle.install import BundleError

MACHINES = ("x86_64", "aarch64")
PYTHONS = ("3.11", "3.12", "3.13")  # as the host
OLDEST_GLIBC = 17
NEWEST_GLIBC = 50
_LEGACY = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}


@dataclass(frozen=True, slots=True)
class Target:
    """A CPython on a Linux with glibc.

    python: such as `3.11`. machine: as `uname -m` says. glibc: the minor version of its 2.x.
    """

    python: str
    machine: str
    glibc: int

    def __post_init__(self) -> None:
        if self.python not in PYTHONS:
            raise BundleError(
                f"the Python version must be one of {', '.join(PYTHONS)}, got {self.python!r}."
            )
        if self.machine not in MACHINES:
            raise BundleError(
                f"the machine must be one of {', '.join(MACHINES)}, got {self.machine!r}."
            )
        if not OLDEST_GLIBC <= self.glibc <= NEWEST_GLIBC:
            raise BundleError(
                f"glibc must be in [2.{OLDEST_GLIBC}, 2.{NEWEST_GLIBC}], got 2.{self.glibc}. "
                "`ldd --version` on the host to install on says which it has."
            )

    @property
    def name(self) -> str:
        """Short and unique, for a directory."""
        return f"cp{self.python.replace('.', '')}-{self.machine}-glibc2.{self.glibc}"

    @property
    def platform_tags(self) -> list[str]:
        """Every platform tag whose wheels run there, the newest first (PEP 600)."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, 4, -1)]
        tags += [f"{name}_{self.machine}" for name in reversed(_LEGACY)]
        return [*tags, f"linux_{self.machine}"]

    def is_this_interpreter(self) -> bool:
        """Whether this interpreter decides environment markers and builds wheels as it would."""
        here = "{}.{}".format(*sys.version_info[:2])
        return (here, platform.machine(), platform.system()) == (self.python, self.machine, "Linux")

    def needs(self, wheels: Iterable[str]) -> dict[str, str | None]:
        """What the installer has to find, given the file names of all wheels."""
        return {
            "implementation": "cpython",
            "python": self.python,
            "system": "Linux",
            "machine": self.machine,
            "glibc": f"2.{max([_glibc(name) for name in wheels], default=0)}",
        }


def _glibc(wheel: str) -> int:
    """The minor version of glibc a wheel asks for; 0 where it asks for none."""
    tags = wheel.removesuffix(".whl").rsplit("-", 1)[-1].split(".")
    minors = [int(match[1]) for tag in tags if (match := re.match(r"manylinux_2_(\d+)_", tag))]
    minors += [_LEGACY[name] for tag in tags if (name := tag.split("_")[0]) in _LEGACY]
    return min(minors, default=0)
