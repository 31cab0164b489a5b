"""What a checkpoint directory says about itself: its ids, its block size, its policy.

Imports neither torch nor sglang; tokenizer files are read as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llada_sglang.errors import CheckpointError

ARCHITECTURE = "LLaDA2MoeModelLM"
MODEL_TYPE = "llada2_moe"
MASK_TOKEN = "<|mask|>"

# LLaDA2.0 and 2.1 as published.
PUBLISHED_MASK_ID = 156895
PUBLISHED_EOS_ID = 156892
PUBLISHED_BLOCK_SIZE = 32


@dataclass(frozen=True, slots=True)
class CheckpointFamily:
    """The facts of a LLaDA2 checkpoint that decoding depends on.

    path: as given. mask_id: the id that stands for a masked position. eos_ids: ids that end a
    text, at least one. block_size: positions per block. config: the whole config.json.
    delete_id, split_id: LLaDA2.2's actions, None where the checkpoint has none. policy: the
    decoding it was trained for.
    """

    path: str
    mask_id: int
    eos_ids: tuple[int, ...]
    block_size: int
    vocab_size: int
    config: dict[str, Any] = field(repr=False)
    delete_id: int | None = None
    split_id: int | None = None
    policy: str = "threshold"


def is_llada2(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is ours to serve, or ours to refuse: a LLaDA of any architecture.

    The host knows no other LLaDA than LLaDA2, so `read_family` refusing it hides nothing.
    """
    names = config.get("architectures") or ()
    return config.get("model_type") == MODEL_TYPE or any(str(n).startswith("LLaDA") for n in names)


def read_config(path: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """The config.json of a local directory, or of a hub id by the ordinary hub client.

    Raises CheckpointError when there is none or it is not a JSON object.
    """
    file = _find(path, "config.json", revision)
    if file is None:
        raise CheckpointError(
            f"{path} is no checkpoint: it has no config.json. "
            "Give a directory holding config.json, tokenizer files and *.safetensors, or a hub id."
        )
    config = read_json(file)
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must be a JSON object, got {type(config).__name__}.")
    return config


def read_family(path: str | Path, *, revision: str | None = None) -> CheckpointFamily:
    """Read the ids and the block size: from config.json, else the tokenizer, else as published.

    path: a local directory or a hub id. Raises CheckpointError for what is no LLaDA2 checkpoint
    or names an id outside of its vocabulary.
    """
    config = read_config(path, revision=revision)
    if ARCHITECTURE not in (config.get("architectures") or ()):
        raise CheckpointError(
            f"{path} has architectures {config.get('architectures')!r}; "
            f"llada_sglang serves {ARCHITECTURE} (LLaDA2.0 and 2.1, mini and flash)."
        )
    vocab_size = integer(config, "vocab_size", low=1)
    mask_id = config.get("mask_token_id")
    eos = config.get("eos_token_id")
    if mask_id is None or eos is None:
        tokenizer = _TokenizerIds.read(path, revision)
        if mask_id is None:
            mask_id = tokenizer.ids.get(MASK_TOKEN, PUBLISHED_MASK_ID)
        if eos is None:
            eos = tokenizer.ids.get(tokenizer.eos_token or "", PUBLISHED_EOS_ID)
    eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not eos_ids:
        raise CheckpointError(f"{path}: eos_token_id in config.json must not be an empty list.")
    for key, value in (("mask_token_id", mask_id), *(("eos_token_id", e) for e in eos_ids)):
        if not _is_int(value) or not 0 <= value < vocab_size:
            raise CheckpointError(
                f"{path}: {key} must be in [0, {vocab_size}), got {value!r}. Set it in config.json."
            )
    if mask_id in eos_ids:
        raise CheckpointError(f"{path}: mask_token_id and eos_token_id are both {mask_id}.")
    delete_id, split_id = _actions(path, config, vocab_size, (mask_id, *eos_ids))
    block_size = PUBLISHED_BLOCK_SIZE
    if config.get("block_size") is not None:
        block_size = integer(config, "block_size", low=1)
    return CheckpointFamily(
        path=str(path),
        mask_id=mask_id,
        eos_ids=eos_ids,
        block_size=block_size,
        vocab_size=vocab_size,
        config=config,
        delete_id=delete_id,
        split_id=split_id,
        policy=_policy(path, config, actions=delete_id is not None),
    )


def _actions(
    path: str | Path, config: Mapping[str, Any], vocab_size: int, taken: Iterable[int]
) -> tuple[int | None, int | None]:
    """The ids of DELETE and SPLIT; both or none."""
    keys = ("delete_token_id", "split_token_id")
    found = [config.get(key) for key in keys]
    if found == [None, None]:
        return None, None
    used = set(taken)
    for key, value in zip(keys, found, strict=True):
        if not _is_int(value) or not 0 <= value < vocab_size or value in used:  # type: ignore[operator]
            raise CheckpointError(
                f"{path}: {key} must be in [0, {vocab_size}) and an id of its own, got {value!r}. "
                f"Set both {' and '.join(keys)} in config.json, or none of them."
            )
        used.add(value)  # type: ignore[arg-type]
    return found[0], found[1]


def _policy(path: str | Path, config: Mapping[str, Any], *, actions: bool) -> str:
    """The decoding a checkpoint was trained for.

    The configurations of LLaDA2.0 and 2.1 are the same to the letter, so their names have to do.
    """
    if actions:
        return "levenshtein"
    if (declared := config.get("decoding_policy")) is not None:
        if not isinstance(declared, str):
            raise CheckpointError(f"{path}: decoding_policy must be a name, got {declared!r}.")
        return declared
    names = (Path(path).name, str(config.get("_name_or_path") or ""))
    return "edit" if any("llada2.1" in name.lower() for name in names) else "threshold"


def read_chat_template(path: str | Path, *, revision: str | None = None) -> str | None:
    """The chat template of a checkpoint, or None where it has none.

    path: a local directory or a hub id. Of several named templates, all of them.
    """
    if (file := _find(path, "chat_template.jinja", revision)) is not None:
        return file.read_text("utf-8")
    if (file := _find(path, "tokenizer_config.json", revision)) is None:
        return None
    template = read_json(file).get("chat_template")
    if isinstance(template, list):
        template = "\n".join(str(named.get("template")) for named in template)
    return template if isinstance(template, str) else None


@dataclass(frozen=True, slots=True)
class _TokenizerIds:
    ids: dict[str, int]
    eos_token: str | None

    @classmethod
    def read(cls, path: str | Path, revision: str | None) -> _TokenizerIds:
        ids: dict[str, int] = {}
        settings: dict[str, Any] = {}
        if (file := _find(path, "tokenizer.json", revision)) is not None:
            tokenizer = read_json(file)
            ids |= _added_ids(tokenizer.get("added_tokens") or ())
        if (file := _find(path, "tokenizer_config.json", revision)) is not None:
            settings = read_json(file)
            decoder = settings.get("added_tokens_decoder") or {}
            ids |= {str(entry["content"]): int(key) for key, entry in decoder.items()}
        eos = settings.get("eos_token")
        return cls(ids=ids, eos_token=eos["content"] if isinstance(eos, dict) else eos)


def _added_ids(entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    return {str(entry["content"]): int(entry["id"]) for entry in entries}


def _find(path: str | Path, name: str, revision: str | None) -> Path | None:
    """A file of a local directory, or of a hub repository by its client and cache; else None."""
    directory = Path(path).expanduser()
    if directory.exists():
        file = directory / name
        return file if file.is_file() else None
    if _looks_local(str(path)):
        return None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(str(path), name, revision=revision)
    except OSError:
        return None
    return Path(found) if found else None


def _looks_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises CheckpointError where it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not readable JSON: {error}.") from error


def integer(config: Mapping[str, Any], key: str, *, low: int) -> int:
    """A number of a config.json. Raises CheckpointError where it is no integer >= low."""
    value = config.get(key)
    if not _is_int(value) or value < low:  # type: ignore[operator]
        raise CheckpointError(f"{key} in config.json must be an integer >= {low}, got {value!r}.")
    return value  # type: ignore[return-value]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
