"""Fingerprints of host symbols, taken from the installed source files.

The files are parsed, never imported: a fingerprint is the same before and after hooks have
replaced the symbol, and taking it costs no import of the host.
"""

from __future__ import annotations

import ast
import hashlib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

HOST = "sglang"


class SymbolNotFoundError(LookupError):
    """The host has no such module or symbol."""


@dataclass(frozen=True, slots=True)
class _Source:
    lines: tuple[str, ...]
    body: tuple[ast.stmt, ...]


def fingerprint(target: str) -> str:
    """Return `sha256:...` of the dedented source of `module:qualified.name`, decorators included.

    A name that the module only imports from elsewhere in the host is followed to its definition.
    Raises SymbolNotFoundError.
    """
    digest = hashlib.sha256(source_of(target).encode()).hexdigest()
    return f"sha256:{digest}"


def source_of(target: str) -> str:
    """Return the dedented source of `module:qualified.name`. Raises SymbolNotFoundError."""
    module, _, qualname = target.partition(":")
    found = _find(module, qualname.split("."), frozenset())
    if found is None:
        raise SymbolNotFoundError(f"{module} defines no {qualname}")
    source, node = found
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return textwrap.dedent("".join(source.lines[first - 1 : node.end_lineno]))


def _find(module: str, names: list[str], seen: frozenset[str]) -> tuple[_Source, ast.stmt] | None:
    if module in seen:
        return None
    source = _read(module)
    node: ast.stmt | None = None
    body: Iterator[ast.stmt] = iter(source.body)
    for depth, name in enumerate(names):
        node = _defined(body, name)
        if node is None:
            return _follow(module, names, seen | {module}) if depth == 0 else None
        body = iter(node.body) if isinstance(node, ast.ClassDef) else iter(())
    return None if node is None else (source, node)


def _defined(body: Iterator[ast.stmt], name: str) -> ast.stmt | None:
    """The last definition of `name`, as that is the one the module ends up with."""
    found: ast.stmt | None = None
    for node in _flat(body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            named = node.name == name
        elif isinstance(node, ast.Assign):
            named = any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
        elif isinstance(node, ast.AnnAssign):
            named = isinstance(node.target, ast.Name) and node.target.id == name
        else:
            named = False
        found = node if named else found
    return found


def _follow(module: str, names: list[str], seen: frozenset[str]) -> tuple[_Source, ast.stmt] | None:
    for node in _flat(iter(_read(module).body)):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if alias.name != "*" and (alias.asname or alias.name) != names[0]:
                continue
            origin = _absolute(module, node)
            if origin.split(".")[0] != HOST:
                continue
            head = names[0] if alias.name == "*" else alias.name
            found = _find(origin, [head, *names[1:]], seen)
            if found is not None:
                return found
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    is_package = _path(module).name == "__init__.py"
    package = module.split(".")[: None if is_package else -1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _flat(body: Iterator[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _flat(iter(node.body))
            yield from _flat(iter(node.orelse))
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from _flat(iter(handler.body))


@cache
def _read(module: str) -> _Source:
    path = _path(module)
    text = path.read_text(encoding="utf-8")
    return _Source(tuple(text.splitlines(keepends=True)), tuple(ast.parse(text).body))


def _path(module: str) -> Path:
    spec = find_spec(HOST)
    if spec is None or not spec.submodule_search_locations:
        raise SymbolNotFoundError(f"{HOST} is not installed")
    base = Path(spec.submodule_search_locations[0]).joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    raise SymbolNotFoundError(f"the host has no module {module}")
