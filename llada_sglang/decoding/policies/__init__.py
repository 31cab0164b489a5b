"""The policies of this package, and those that others register.

Names are resolved without importing anything but the module a policy is in.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from llada_sglang.errors import LaunchConfigError

if TYPE_CHECKING:
    from llada_sglang.decoding.policy import Policy

GROUP = "llada_sglang.policies"

BUILT_IN = {
    "threshold": "threshold:Threshold",
    "steps": "steps:Steps",
    "entropy": "entropy:Entropy",
    "hierarchical": "hierarchical:Hierarchical",
    "credit": "credit:Credit",
    "factor": "factor:Factor",
    "edit": "edit:Edit",
    "levenshtein": "levenshtein:Levenshtein",
}


@cache
def policy_classes() -> dict[str, type[Policy]]:
    """Every policy by name, our own and those of other packages.

    Raises LaunchConfigError where another package's policy cannot be imported, is none, or takes
    the name of one of ours.
    """
    found: dict[str, type[Policy]] = {}
    for name, place in BUILT_IN.items():
        module, _, attribute = place.partition(":")
        found[name] = getattr(import_module(f"{__name__}.{module}"), attribute)
    for entry in entry_points(group=GROUP):
        found[entry.name] = _load(entry, found)
    return found


def _load(entry: EntryPoint, found: dict[str, type[Policy]]) -> type[Policy]:
    from llada_sglang.decoding.policy import Policy

    package = entry.dist.name if entry.dist is not None else "a package"
    where = f"decoding policy {entry.name!r} of {package} ({entry.value})"
    if entry.name in found:
        raise LaunchConfigError(f"{where} takes a name that is taken. Rename or uninstall it.")
    try:
        loaded = entry.load()
    except Exception as error:
        raise LaunchConfigError(
            f"{where} cannot be imported: {type(error).__name__}: {error}. "
            f"Mend or uninstall {package}."
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Policy)):
        raise LaunchConfigError(f"{where} is no subclass of {Policy.__module__}.{Policy.__name__}.")
    return loaded
