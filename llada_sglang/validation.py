"""Whether a checkpoint directory is whole, before anything is started. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llada_sglang.checkpoint import CheckpointFamily, integer, read_family, read_json
from llada_sglang.errors import CheckpointError
from llada_sglang.weights import (
    Shape,
    check_weight_names,
    check_weight_shapes,
    normalized,
    read_header,
)

_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.gguf", "*.pth")


def validate(
    path: str | Path,
    *,
    revision: str | None = None,
    need_weights: bool = True,
    need_tokenizer: bool = True,
) -> CheckpointFamily:
    """Check that a checkpoint can be served, reading headers only, before anything is started.

    path: a local directory, whose files are all checked, or a hub id, of which only the
    configuration is: the host downloads and loads the rest. need_weights, need_tokenizer: turn
    off for --load-format dummy and for --skip-tokenizer-init or --tokenizer-path.
    Raises CheckpointError: no checkpoint, another architecture, bad JSON, a truncated file, a
    missing shard or tensor, no tokenizer.
    """
    family = read_family(path, revision=revision)
    directory = Path(path)
    if not directory.is_dir():
        return family
    if need_tokenizer and not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{directory} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)}. "
            "Copy the files of the original checkpoint, or give --tokenizer-path."
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if need_tokenizer and (directory / name).is_file():
            read_json(directory / name)
    if need_weights:
        _check_weights(directory, family.config)
    return family


def _check_weights(directory: Path, config: Mapping[str, Any]) -> None:
    files = sorted(directory.glob("*.safetensors"))
    index = directory / _INDEX
    listed: Any = {}
    if index.is_file():
        content = read_json(index)
        listed = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(listed, dict):
            raise CheckpointError(f"{index} has no weight_map.")
        files = [directory / name for name in sorted(set(listed.values()))]
    if not files:
        if any(next(directory.glob(pattern), None) for pattern in _OTHER_WEIGHTS):
            return  # another format: the host reads it, the model checks the names
        raise CheckpointError(f"{directory} has no weights: no *.safetensors file.")
    shapes: dict[str, Shape] = {}
    held: dict[str, set[str]] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing; {_INDEX} lists it. Finish or repeat the download."
            )
        header = read_header(file)
        held[file.name] = set(header)
        shapes |= header
    absent = [name for name, shard in listed.items() if name not in held[shard]]
    if absent:
        raise CheckpointError(
            f"{directory / listed[absent[0]]} does not hold {absent[0]}, "
            f"which {_INDEX} says it does. Download it again."
        )
    quantized = config.get("quantization_config") is not None
    shapes = normalized(shapes, integer(config, "num_experts", low=1))
    try:
        check_weight_names(shapes, config, quantized=quantized)
        if not quantized:
            check_weight_shapes(shapes, config)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None
