"""What the reference says to a prompt, computed once per question."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from servers import Server

from llada_sglang.checkpoint import read_family
from llada_sglang.reference.checkpoint import load_model
from llada_sglang.reference.decode import Decoded, decode


class Oracle:
    """The reference model of a checkpoint in float32."""

    def __init__(self, path: Path) -> None:
        self.family = read_family(path)
        self.model = load_model(path, dtype=torch.float32)
        self._ask = cache(self._decode)

    def __call__(self, prompt: list[int], **params: Any) -> Decoded:
        """Decode a prompt; keywords as `reference.decode.decode` takes them."""
        parameters = tuple(sorted(params.pop("parameters", {}).items()))
        return self._ask(tuple(prompt), tuple(sorted(params.items())), parameters)

    def _decode(
        self,
        prompt: tuple[int, ...],
        params: tuple[tuple[str, Any], ...],
        parameters: tuple[tuple[str, Any], ...],
    ) -> Decoded:
        with torch.inference_mode():
            return decode(
                self.model,
                prompt,
                block_size=self.family.block_size,
                mask_id=self.family.mask_id,
                eos_ids=self.family.eos_ids,
                delete_id=self.family.delete_id,
                split_id=self.family.split_id,
                parameters=dict(parameters),
                **dict(params),
            )


def alive_and_exact(server: Server, oracle: Oracle) -> None:
    """Assert that a server of the oracle's checkpoint still answers, and with the right tokens."""
    prompt = list(range(40, 75))
    answer = server.generate(prompt, max_new_tokens=40)
    assert tuple(answer["output_ids"]) == oracle(prompt, max_new_tokens=40).output_ids
