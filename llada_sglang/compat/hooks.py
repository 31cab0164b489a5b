"""Put our changes into the host of this process, and prove that they are there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from llada_sglang.compat.check import installed_version, require_host
from llada_sglang.compat.ledger import Kind, Patch, load_ledger, tested_versions
from llada_sglang.errors import HostMismatchError

_installed = False


def install(*, apply: bool) -> None:
    """Register our model, attention backend and algorithm, and hook every symbol of the ledger.

    apply: whether to run the host's hook registry now. In a child process the host does so itself,
    right after every plugin has registered; ours would otherwise shut out theirs.
    Raises HostMismatchError where the host is not one we know. Idempotent.
    """
    global _installed
    require_host()
    if not _installed:
        _register_extensions()
        _register_hooks()
        _installed = True
    if apply:
        from sglang.srt.plugins.hook_registry import HookRegistry

        HookRegistry.apply_hooks()
        require_installed()


def install_config() -> None:
    """Let transformers know our configuration class, for a process that loads only a tokenizer."""
    from transformers import AutoConfig

    from llada_sglang.models.config import LLaDA2MoeConfig

    AutoConfig.register(LLaDA2MoeConfig.model_type, LLaDA2MoeConfig, exist_ok=True)


def require_installed() -> None:
    """Verify that every symbol we change is ours in this process.

    Raises HostMismatchError naming the first that is not: the host logs a failing hook and goes on.
    """
    for patch in load_ledger():
        if patch.kind.changes_host and not is_ours(patch):
            raise HostMismatchError(
                f"{patch.target} is not llada_sglang's after the hooks ran (SGLang "
                f"{installed_version()}, tested: {', '.join(tested_versions())}). Another plugin "
                f"may have taken it: see the log above, and restrict the plugins with "
                f"SGLANG_PLUGINS=llada_sglang."
            )


def is_ours(patch: Patch) -> bool:
    """Whether the symbol of a record that changes the host carries our hook in this process."""
    if not _installed:
        return False
    current = pkgutil.resolve_name(patch.target)
    hook = pkgutil.resolve_name(patch.hook)
    if isinstance(hook, type):
        return isinstance(current, type) and issubclass(current, hook)
    return any(part is hook for part in _wrapped_parts(current))


def _wrapped_parts(function: Any) -> Iterator[Any]:
    """The functions that the host's registry nested into this one: it closes over each hook."""
    while function is not None:
        function = getattr(function, "__func__", function)
        for cell in getattr(function, "__closure__", None) or ():
            yield cell.cell_contents
        function = getattr(function, "__wrapped__", None)


def _register_extensions() -> None:
    from sglang.srt.dllm.algorithm import algo_name_to_cls

    for module in ("models", "attention", "serving.reasoning", "serving.tool_calls"):
        importlib.import_module(f"llada_sglang.{module}").register()
    from llada_sglang.scheduler.algorithm import NAME, BlockDiffusion

    algo_name_to_cls[NAME] = BlockDiffusion


def _register_hooks() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

    source = HookSource(plugin_name="llada_sglang", dist_name="llada-sglang")
    types = {
        Kind.REPLACE: HookType.REPLACE,
        Kind.AROUND: HookType.AROUND,
        Kind.BEFORE: HookType.BEFORE,
        Kind.AFTER: HookType.AFTER,
    }
    for patch in load_ledger():
        if patch.kind.changes_host:
            hook = pkgutil.resolve_name(patch.hook)
            HookRegistry.register(patch.host_path, hook, types[patch.kind], source=source)
