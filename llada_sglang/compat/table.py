"""The README's table of everything we change in the host, generated from the ledger."""

from __future__ import annotations

from llada_sglang.compat.ledger import Kind, Patch, load_ledger, tested_versions

BEGIN = "<!-- patches:begin -->"
END = "<!-- patches:end -->"


def patch_table() -> str:
    """Return a Markdown table of the changed, subclassed and extended symbols."""
    rows = [patch for patch in load_ledger() if patch.kind is not Kind.USE]
    used = len(load_ledger()) - len(rows)
    lines = ["| SGLang symbol | what we do | why | goes away when |", "|---|---|---|---|"]
    lines += [_row(patch) for patch in rows]
    lines += [
        "",
        f"{used} more symbols are used as they are. The source of every one is compared with the "
        f"tested ones ({', '.join(tested_versions())}) at each start.",
    ]
    return "\n".join(lines)


def fill_readme(text: str) -> str:
    """Return `text` with what stands between the markers replaced by the table.

    Raises ValueError where the markers are missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text must hold {BEGIN} and {END} around the patch table")
    return f"{head}{BEGIN}\n{patch_table()}\n{END}{tail}"


def _row(patch: Patch) -> str:
    why = patch.why + (f" ({patch.upstream})" if patch.upstream else "")
    what = f"{patch.kind.value}: {patch.how}"
    symbol = patch.target.replace("sglang.srt.", "")
    return f"| `{symbol}` | {what} | {why} | {patch.remove_when or '-'} |"
