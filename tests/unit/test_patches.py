"""The ledger names every symbol of the host that the package touches, and says why."""

from __future__ import annotations

import ast
import pkgutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llada_sglang import compat
from llada_sglang.compat import Kind, Patch, load_ledger
from llada_sglang.compat.fingerprint import fingerprint
from llada_sglang.compat.table import BEGIN, END, fill_readme, patch_table

LEDGER = load_ledger()
PACKAGE = Path(__file__).resolve().parents[2] / "llada_sglang"


def host_imports() -> Iterator[tuple[str, str]]:
    """Every `module:name` the package imports from the host, with the place."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if "patches" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            place = f"{file.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "sglang":
                        yield f"{alias.name}:", place
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
                for alias in node.names:
                    yield f"{node.module}:{alias.name}", place


IMPORTS = sorted(set(host_imports()))


@pytest.mark.parametrize("target", sorted({target for target, _ in IMPORTS}))
def test_every_imported_host_symbol_is_in_the_ledger(target: str) -> None:
    places = [place for imported, place in IMPORTS if imported == target]
    module, _, name = target.partition(":")
    # A module imported as a whole (`from sglang.srt.models import llada2`) is covered by a record
    # of something in it; a class by a record of itself or of its methods.
    covered = any(
        patch.target == target
        or patch.target.startswith(f"{target}.")
        or patch.target.startswith(f"{module}.{name}:" if name else target)
        for patch in LEDGER
    )
    assert covered, f"{target}, imported at {', '.join(places)}, has no record in patches/"


def test_no_symbol_has_two_records() -> None:
    twice = [target for target, n in Counter(p.target for p in LEDGER).items() if n > 1]
    assert twice == []


@pytest.mark.parametrize("patch", LEDGER, ids=lambda patch: patch.target)
def test_a_record_says_what_it_has_to(patch: Patch) -> None:
    assert patch.why
    assert not patch.why.endswith(".")
    if patch.kind is not Kind.USE:
        assert patch.how, "every kind but USE says what ours does"
    if patch.kind.changes_host:
        assert patch.remove_when, "a change of the host says when it goes away"
        assert patch.hook
        assert callable(pkgutil.resolve_name(patch.hook))
    else:
        assert not patch.hook, "only kinds that change the host have a hook"


@pytest.mark.parametrize("patch", LEDGER, ids=lambda patch: patch.target)
def test_a_record_fits_the_installed_host(patch: Patch) -> None:
    from importlib.metadata import version

    installed = version("sglang")
    assert patch.fingerprints, "run `python -m llada_sglang.compat --write` after testing"
    assert patch.fingerprints[installed] == fingerprint(patch.target)


@pytest.mark.parametrize(
    "patch", [p for p in LEDGER if p.kind.changes_host], ids=lambda patch: patch.target
)
def test_a_changed_symbol_is_still_used_by_name_in_the_host(patch: Patch) -> None:
    """A stale record would hook something that exists but that nothing looks at any more."""
    import sglang

    name = patch.target.rpartition(":")[2].rpartition(".")[2]
    root = Path(sglang.__path__[0]) / "srt"
    files = (file for file in root.rglob("*.py") if name in file.read_text("utf-8"))
    assert sum(1 for _ in files) >= 1


def test_a_version_counts_as_tested_only_when_every_record_has_it() -> None:
    assert compat.tested_versions() == ("0.5.23",)


def test_the_table_lists_every_symbol_that_is_changed() -> None:
    table = patch_table()
    for patch in LEDGER:
        shown = f"| `{patch.target.replace('sglang.srt.', '')}` |" in table
        assert shown == (patch.kind is not Kind.USE)


def test_the_readme_shows_the_ledger(repository: Path) -> None:
    readme = (repository / "README.md").read_text("utf-8")
    assert fill_readme(readme) == readme, "run `python -m llada_sglang.compat --readme README.md`"


def test_a_readme_without_the_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="patches:begin"):
        fill_readme("# nothing here")
    assert fill_readme(f"a\n{BEGIN}\nold\n{END}\nb").startswith(f"a\n{BEGIN}\n|")
