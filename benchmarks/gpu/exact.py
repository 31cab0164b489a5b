"""Nano in float32 on the device against the reference on the CPU, token for token."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.client import Task, ask_all
from benchmarks.engines import REPOSITORY, ServerSpec, serve
from benchmarks.gpu.setting import Setting
from llada_sglang.checkpoint import read_family
from llada_sglang.nano import chat, tasks
from llada_sglang.reference.checkpoint import load_model
from llada_sglang.reference.decode import decode

NANO = REPOSITORY / "llada_sglang" / "nano" / "checkpoint"
TOKENS = 96

# Triton multiplies float32 in TF32 unless told otherwise; the reference does not round its inputs.
EXACT = {"TRITON_F32_DEFAULT": "ieee", "NVIDIA_TF32_OVERRIDE": "0"}


def measure(setting: Setting) -> dict[str, Any]:
    """How many answers are the reference's; the first that is not, in words."""
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    count = setting.sizes.questions
    prompts = []
    for index in range(count):
        family = tasks.FAMILIES[index % len(tasks.FAMILIES)]
        (example,) = tasks.examples(index, family, "eval", 1)
        prompts.append(tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids)
    server_spec = ServerSpec(str(NANO), ("--dtype", "float32")).with_environment(EXACT)
    with serve(server_spec, setting.work / "exact.log") as server:
        asked = [Task(tuple(prompt), TOKENS, ignore_eos=False) for prompt in prompts]
        replies = asyncio.run(ask_all(server.url, asked, concurrency=8))
    family_facts, model = read_family(NANO), load_model(NANO, dtype=torch.float32)
    different: list[str] = []
    for index, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        with torch.inference_mode():
            expected = decode(
                model,
                tuple(prompt),
                max_new_tokens=TOKENS,
                block_size=family_facts.block_size,
                mask_id=family_facts.mask_id,
                eos_ids=family_facts.eos_ids,
            )
        if reply.error or tuple(reply.output_ids) != expected.output_ids:
            different.append(reply.error or f"question {index}: {reply.text!r}")
    return {"answers": count, "equal": count - len(different), "different": different[:3]}
