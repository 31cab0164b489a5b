"""Whether the installed host is one we were tested with, symbol by symbol."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from llada_sglang.compat.fingerprint import HOST, SymbolNotFoundError, fingerprint
from llada_sglang.compat.ledger import Patch, load_ledger, tested_versions
from llada_sglang.errors import HostMismatchError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """One host symbol that is not what we were tested with."""

    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class HostReport:
    """What the installed host looks like from here."""

    installed: str
    tested: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def supported(self) -> bool:
        """Whether every symbol we depend on is one we know."""
        return not self.problems

    @property
    def tested_version(self) -> bool:
        """Whether the version itself was tested."""
        return self.installed in self.tested

    def message(self) -> str:
        """Say what is wrong and the way out, in one paragraph."""
        tested = ", ".join(self.tested) or "none"
        first = self.problems[0]
        others = len(self.problems) - 1
        more = f" ({others} more; `llada-sglang doctor` lists them)" if others else ""
        wanted = f"{HOST}=={self.tested[-1]}" if self.tested else HOST
        return (
            f"SGLang {self.installed} is installed; llada_sglang was tested with {tested}. "
            f"{first.target}: {first.reason}{more}. LLaDA2 models are not served on an unknown "
            f"host, other models are left alone. Install a tested version: "
            f'pip install --force-reinstall "{wanted}".'
        )


def installed_version() -> str:
    """The installed host's version, or `none`."""
    try:
        return version(HOST)
    except PackageNotFoundError:
        return "none"


@cache
def inspect_host() -> HostReport:
    """Compare every symbol of the ledger with the installed host. Imports nothing of it."""
    installed = installed_version()
    problems = []
    for patch in load_ledger():
        reason = _mismatch(patch, installed)
        if reason is not None:
            problems.append(Problem(patch.target, reason))
    return HostReport(installed, tested_versions(), tuple(problems))


def require_host() -> HostReport:
    """Return the report of a host we can serve on, with a warning where its version is untested.

    Raises HostMismatchError naming the installed version, the tested ones and the symbol.
    """
    report = inspect_host()
    if not report.supported:
        raise HostMismatchError(report.message())
    if not report.tested_version:
        logger.warning(
            "SGLang %s is untested (tested: %s), but every symbol llada_sglang depends on is one "
            "it knows; going on.",
            report.installed,
            ", ".join(report.tested),
        )
    return report


def _mismatch(patch: Patch, installed: str) -> str | None:
    try:
        actual = fingerprint(patch.target)
    except SymbolNotFoundError as error:
        return f"missing, {error}"
    known = patch.fingerprints
    expected = {known[installed]} if installed in known else set(known.values())
    if actual in expected:
        return None
    return f"its source is not the tested one ({actual[:19]}...)"
