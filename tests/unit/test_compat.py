"""A host we do not know is refused, symbol by symbol, and nothing is taken for granted."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from llada_sglang.compat import Kind, Patch, check, fingerprint, hooks
from llada_sglang.compat.__main__ import with_fingerprints
from llada_sglang.errors import HostMismatchError

LOAD_PLUGINS = "sglang.srt.plugins:load_plugins"
KNOWN = fingerprint.fingerprint(LOAD_PLUGINS)


def use(target: str = LOAD_PLUGINS, **fingerprints: str) -> Patch:
    versions = {name.replace("v", "").replace("_", "."): v for name, v in fingerprints.items()}
    return Patch(target=target, kind=Kind.USE, why="a test", fingerprints=versions)


@pytest.fixture
def host_is(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Pretend that this version is installed and that this is the ledger."""

    def pretend(version: str, *ledger: Patch) -> None:
        tested = sorted({v for patch in ledger for v in patch.fingerprints})
        monkeypatch.setattr(check, "installed_version", lambda: version)
        monkeypatch.setattr(check, "load_ledger", lambda: ledger)
        monkeypatch.setattr(check, "tested_versions", lambda: tuple(tested))
        check.inspect_host.cache_clear()

    yield pretend
    check.inspect_host.cache_clear()


@pytest.mark.parametrize(
    "name", ["load_plugins", "load_plugins_by_group", "hook_registry:HookRegistry"]
)
def test_fingerprint_is_the_hash_of_the_source_python_itself_reports(name: str) -> None:
    module_name, _, attribute = name.rpartition(":")
    module_name = "sglang.srt.plugins" + (f".{module_name}" if module_name else "")
    module = __import__(module_name, fromlist=["_"])
    source = textwrap.dedent(inspect.getsource(getattr(module, attribute)))
    expected = "sha256:" + hashlib.sha256(source.encode()).hexdigest()
    assert fingerprint.fingerprint(f"{module_name}:{attribute}") == expected


@pytest.fixture
def fake_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host of two modules, in place of the installed one."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "__init__.py").write_text("from sglang.sub import *\n")
    (tmp_path / "sub" / "__init__.py").write_text(
        "from .deep import helper as renamed\nfrom os import path\n"
    )
    (tmp_path / "sub" / "deep.py").write_text(
        "import functools\n"
        "TABLE = {\n    'a': 1,\n}\n"
        "count: int = 3\n"
        "try:\n"
        "    @functools.cache\n"
        "    def helper():\n"
        "        return 1\n"
        "except ImportError:\n"
        "    pass\n"
        "class Base:\n"
        "    @staticmethod\n"
        "    def method():\n"
        "        pass\n"
    )
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(fingerprint, "find_spec", lambda name: spec)
    fingerprint._read.cache_clear()
    yield tmp_path
    fingerprint._read.cache_clear()


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("sglang.sub.deep:TABLE", "TABLE = {\n    'a': 1,\n}\n"),
        ("sglang.sub.deep:count", "count: int = 3\n"),
        ("sglang.sub.deep:helper", "@functools.cache\ndef helper():\n    return 1\n"),
        ("sglang.sub.deep:Base.method", "@staticmethod\ndef method():\n    pass\n"),
        ("sglang.sub:renamed", "@functools.cache\ndef helper():\n    return 1\n"),
        ("sglang:renamed", "@functools.cache\ndef helper():\n    return 1\n"),
    ],
)
@pytest.mark.usefixtures("fake_host")
def test_a_symbol_is_found_where_it_is_defined(target: str, source: str) -> None:
    assert fingerprint.source_of(target) == source


@pytest.mark.parametrize(
    "target",
    ["sglang.gone:x", "sglang.sub.deep:gone", "sglang.sub.deep:Base.gone", "sglang.sub:path"],
)
@pytest.mark.usefixtures("fake_host")
def test_a_symbol_the_host_does_not_define_is_reported_missing(target: str) -> None:
    with pytest.raises(fingerprint.SymbolNotFoundError):
        fingerprint.fingerprint(target)


def test_a_changed_symbol_stops_with_version_tested_versions_and_symbol(host_is) -> None:
    host_is("0.5.23", use(v0_5_23="sha256:" + "0" * 64))
    with pytest.raises(HostMismatchError) as raised:
        check.require_host()
    message = str(raised.value)
    assert "SGLang 0.5.23 is installed" in message
    assert "tested with 0.5.23" in message
    assert LOAD_PLUGINS in message
    assert "pip install" in message


def test_a_missing_symbol_stops_with_its_name(host_is) -> None:
    host_is("0.5.23", use("sglang.srt.plugins:gone", v0_5_23=KNOWN))
    with pytest.raises(HostMismatchError, match=r"sglang\.srt\.plugins:gone: missing"):
        check.require_host()


def test_an_untested_version_of_known_symbols_starts_with_a_warning(host_is, caplog) -> None:
    host_is("0.5.99", use(v0_5_23=KNOWN))
    with caplog.at_level(logging.WARNING):
        report = check.require_host()
    assert report.supported
    assert "0.5.99 is untested" in caplog.text


def test_an_untested_version_with_a_changed_symbol_stops(host_is) -> None:
    host_is("0.5.99", use(v0_5_23="sha256:" + "0" * 64))
    with pytest.raises(HostMismatchError, match=r"SGLang 0\.5\.99 is installed"):
        check.require_host()


def test_a_tested_version_has_to_match_its_own_fingerprint_not_another_ones(host_is) -> None:
    host_is("0.5.24", use(v0_5_23=KNOWN, v0_5_24="sha256:" + "0" * 64))
    with pytest.raises(HostMismatchError):
        check.require_host()


def test_the_installed_host_is_supported() -> None:
    assert check.inspect_host().problems == ()


class Replacement:
    """Stands for our scheduler."""


def around(original, *args):
    return original(*args) + 1


def other(original, *args):
    return original(*args) * 10


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module to hook, with the host's registry emptied before and after."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    HookRegistry.reset()
    module = types.ModuleType("hooked_host")

    class Holder:
        @staticmethod
        def static(value):
            return value

        @classmethod
        def of_class(cls, value):
            return value

    module.Thing = type("Thing", (), {})
    module.Holder = Holder
    module.function = lambda value: value
    monkeypatch.setitem(sys.modules, "hooked_host", module)
    monkeypatch.setitem(sys.modules, "our_hooks", sys.modules[__name__])
    monkeypatch.setattr(hooks, "_installed", True)
    yield module
    HookRegistry.reset()


def record(name: str, kind: Kind, hook: str) -> Patch:
    return Patch(target=f"hooked_host:{name}", kind=kind, why="a test", hook=f"our_hooks:{hook}")


CHANGES = [
    record("Thing", Kind.REPLACE, "Replacement"),
    record("function", Kind.AROUND, "around"),
    record("Holder.static", Kind.AROUND, "around"),
    record("Holder.of_class", Kind.AROUND, "around"),
]


@pytest.mark.parametrize("patch", CHANGES, ids=lambda patch: patch.target)
def test_a_hook_counts_as_applied_only_once_the_host_has_applied_it(hooked, patch) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    assert not hooks.is_ours(patch)
    hook = getattr(sys.modules[__name__], patch.hook.split(":")[1])
    HookRegistry.register(patch.host_path, hook, HookType[patch.kind.name])
    assert not hooks.is_ours(patch)
    HookRegistry.apply_hooks()
    assert hooks.is_ours(patch)


@pytest.mark.parametrize("patch", CHANGES[1:], ids=lambda patch: patch.target)
def test_a_hook_of_another_plugin_around_ours_leaves_it_ours(hooked, patch) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(patch.host_path, around, HookType.AROUND)
    HookRegistry.register(patch.host_path, other, HookType.AROUND)
    HookRegistry.apply_hooks()
    assert hooks.is_ours(patch)


def test_a_hook_the_host_failed_to_apply_stops_the_launch(hooked, monkeypatch) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    taken = dataclasses.replace(CHANGES[0])
    monkeypatch.setattr(hooks, "load_ledger", lambda: (taken,))
    HookRegistry.register("hooked_host.Thing", Replacement, HookType.REPLACE)
    HookRegistry.register("hooked_host.Thing", type("Theirs", (), {}), HookType.REPLACE)
    HookRegistry.apply_hooks()
    with pytest.raises(HostMismatchError, match=r"hooked_host:Thing is not llada_sglang's"):
        hooks.require_installed()


def test_recording_fingerprints_changes_nothing_else() -> None:
    text = (
        "PATCHES = (\n"
        f'    Patch(target="{LOAD_PLUGINS}", why="é", fingerprints={{"0.1": "sha256:old"}}),\n'
        ")\n"
    )
    updated = with_fingerprints(text, "0.2")
    namespace = {"Patch": lambda **fields: fields}
    exec(updated, namespace)
    assert namespace["PATCHES"] == (
        {"target": LOAD_PLUGINS, "why": "é", "fingerprints": {"0.1": "sha256:old", "0.2": KNOWN}},
    )
