"""Which hosts we serve on, and the proof in each process that our changes are in place."""

from __future__ import annotations

from llada_sglang.compat.check import HostReport, Problem, inspect_host, require_host
from llada_sglang.compat.hooks import install, install_config, require_installed
from llada_sglang.compat.ledger import Kind, Patch, load_ledger, tested_versions

__all__ = [
    "HostReport",
    "Kind",
    "Patch",
    "Problem",
    "inspect_host",
    "install",
    "install_config",
    "load_ledger",
    "require_host",
    "require_installed",
    "tested_versions",
]
