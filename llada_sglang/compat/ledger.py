"""The ledger of everything we touch in the host: one `Patch` per symbol, kept in `patches/`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache


class Kind(Enum):
    """What we do with a host symbol. The first four change it, through the host's hook registry."""

    REPLACE = "replace"
    AROUND = "around"
    BEFORE = "before"
    AFTER = "after"
    SUBCLASS = "subclass"
    EXTEND = "extend"  # a registry of the host that we add an entry to
    SET = "set"  # a variable of the host that we give another value
    USE = "use"  # called or read as it is

    @property
    def changes_host(self) -> bool:
        """Whether the symbol itself is another one after our hooks ran."""
        return self in (Kind.REPLACE, Kind.AROUND, Kind.BEFORE, Kind.AFTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One host symbol we depend on.

    target: `module:qualified.name` in the host.
    why: the reason, a sentence. how: what ours does; needed for every kind but USE.
    hook: `module:name` of our class or function, for the kinds that change the host.
    upstream: related change or discussion in the host's repository, if there is one.
    remove_when: what would make this entry unnecessary; needed where the host is changed.
    fingerprints: host version -> sha256 of the symbol's source, of the versions tested.
    """

    target: str
    kind: Kind
    why: str
    how: str = ""
    hook: str = ""
    upstream: str = ""
    remove_when: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def host_path(self) -> str:
        """The target as the host's hook registry spells it."""
        return self.target.replace(":", ".")


@cache
def load_ledger() -> tuple[Patch, ...]:
    """Return every record of `llada_sglang.patches`, sorted by target."""
    package = importlib.import_module("llada_sglang.patches")
    found: list[Patch] = []
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        found.extend(importlib.import_module(info.name).PATCHES)
    return tuple(sorted(found, key=lambda patch: patch.target))


def tested_versions() -> tuple[str, ...]:
    """Host versions for which every record carries a fingerprint, oldest first."""
    ledger = load_ledger()
    versions = {version for patch in ledger for version in patch.fingerprints}
    complete = (v for v in versions if all(v in patch.fingerprints for patch in ledger))
    return tuple(sorted(complete, key=_version_key))


def _version_key(version: str) -> tuple[int | str, ...]:
    return tuple(int(part) if part.isdigit() else part for part in version.split("."))
