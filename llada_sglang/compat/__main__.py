"""`python -m llada_sglang.compat`: state of the host, fingerprints, and the README's table."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

from llada_sglang.compat.check import inspect_host, installed_version
from llada_sglang.compat.fingerprint import fingerprint
from llada_sglang.compat.ledger import load_ledger
from llada_sglang.compat.table import fill_readme


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 where the host is not one we know."""
    parser = argparse.ArgumentParser(prog="python -m llada_sglang.compat", description=__doc__)
    parser.add_argument("--fingerprints", action="store_true", help="print the installed host's")
    parser.add_argument(
        "--write", action="store_true", help="and record them in patches/ as tested, after testing!"
    )
    parser.add_argument("--readme", type=Path, help="rewrite the patch table of this file")
    options = parser.parse_args(arguments)
    if options.readme is not None:
        options.readme.write_text(fill_readme(options.readme.read_text("utf-8")), "utf-8")
        return 0
    if options.fingerprints or options.write:
        for patch in load_ledger():
            print(f"{fingerprint(patch.target)}  {patch.target}")
        if options.write:
            _record(installed_version())
        return 0
    report = inspect_host()
    print(f"SGLang {report.installed}, tested: {', '.join(report.tested) or 'none'}")
    for problem in report.problems:
        print(f"  {problem.target}: {problem.reason}")
    print("supported" if report.supported else "not supported")
    return 0 if report.supported else 1


def _record(version: str) -> None:
    """Write the installed host's fingerprints into the records of `patches/`."""
    import llada_sglang.patches

    for file in sorted(Path(llada_sglang.patches.__path__[0]).glob("*.py")):
        text = file.read_text("utf-8")
        updated = with_fingerprints(text, version)
        if updated != text:
            file.write_text(updated, "utf-8")


def with_fingerprints(text: str, version: str) -> str:
    """Return the source of a `patches/` module with the fingerprints of `version` filled in."""
    lines = text.splitlines(keepends=True)
    edits: list[tuple[int, int, str]] = []
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Patch"):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        known: dict[str, str] = ast.literal_eval(given["fingerprints"])
        known[version] = fingerprint(ast.literal_eval(given["target"]))
        entries = (f'            "{name}": "{value}",\n' for name, value in sorted(known.items()))
        old = given["fingerprints"]
        start = _offset(lines, old.lineno, old.col_offset)
        end = _offset(lines, old.end_lineno or old.lineno, old.end_col_offset or 0)
        edits.append((start, end, "{\n" + "".join(entries) + "        }"))
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _offset(lines: list[str], line: int, column: int) -> int:
    """Character offset of an ast position, whose column counts UTF-8 bytes."""
    before = lines[line - 1].encode()[:column].decode()
    return sum(len(text) for text in lines[: line - 1]) + len(before)


if __name__ == "__main__":
    sys.exit(main())
