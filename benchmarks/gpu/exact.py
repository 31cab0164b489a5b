"""Nano in float32 on the device against the reference on the CPU, token for token."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.client import Task
from benchmarks.engines import REPOSITORY, Server, ServerSpec, serve
from benchmarks.gpu.serving import in_time
from benchmarks.gpu.setting import READY_SECONDS, Setting, bound
from llada_sglang.checkpoint import read_family
from llada_sglang.nano import chat, tasks
from llada_sglang.reference.checkpoint import load_model
from llada_sglang.reference.decode import decode

NANO = REPOSITORY / "llada_sglang" / "nano" / "checkpoint"
TOKENS = 96
FLAGS = ("--dtype", "float32", "--max-total-tokens", "65536")

# Triton multiplies float32 in TF32 unless told otherwise; the reference does not round its inputs.
EXACT = {"TRITON_F32_DEFAULT": "ieee", "NVIDIA_TF32_OVERRIDE": "0"}


def measure(setting: Setting) -> dict[str, Any]:
    """How many answers are the reference's, what computed them, the first that differ in words."""
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    count = setting.sizes.questions
    prompts = []
    for index in range(count):
        family = tasks.FAMILIES[index % len(tasks.FAMILIES)]
        (example,) = tasks.examples(index, family, "eval", 1)
        prompts.append(tokenizer.encode(chat.render_prompt(example.messages, example.tools)).ids)
    server_spec = bound(ServerSpec(str(NANO), FLAGS).with_environment(EXACT))
    log = setting.work / "exact.log"
    with serve(server_spec, log, ready_seconds=READY_SECONDS) as server:
        asked = [Task(tuple(prompt), TOKENS, ignore_eos=False) for prompt in prompts]
        replies = in_time(server.url, asked, concurrency=8)
        path = computed_by(server)
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
    equal = count - len(different)
    return {"answers": count, "equal": equal, "different": different[:3], "path": path}


def computed_by(server: Server) -> str:
    """The attention backend, and whether forwards ran as graphs, in words."""
    backend = json.loads(server.get("/server_info")).get("attention_backend")
    graphs = re.search(r"CUDA graphs of \d+ row counts up to \d+", server.log())
    return f"{backend} attention, {graphs[0] if graphs else 'no CUDA graphs'}"
