"""The scheduler's rounds over a model that is a function of the canvas: no engine, no KV.

Planner, canvases, candidates, policies and emission are the real ones; only the forward, the page
table and the host's request object are stood in for, so that a test chooses every logit.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llada_sglang.config import Decoding
from llada_sglang.decoding.penalties import Penalties
from llada_sglang.decoding.policies import policy_classes
from llada_sglang.decoding.policy import Checkpoint, PolicySet
from llada_sglang.decoding.sampling import Sampling
from llada_sglang.scheduler.canvas import CanvasTable
from llada_sglang.scheduler.options import TokenOptions
from llada_sglang.scheduler.rounds import Limits, Rounds
from llada_sglang.scheduler.runner import BlockRunner
from llada_sglang.scheduler.state import RequestRecord

LogitsFn = Callable[[Tensor], Tensor]


class _Request:
    """What the rounds use of the host's request."""

    def __init__(
        self, rid: str, prompt: Sequence[int], *, tokens: int, eos: Sequence[int], ignore: bool
    ) -> None:
        self.rid = rid
        self.origin_input_ids = array("q", prompt)
        self.output_ids = array("q")
        self.sampling_params = SimpleNamespace(
            max_new_tokens=tokens, ignore_eos=ignore, stop_token_ids=None
        )
        self.eos_token_ids = set(eos)
        self.tokenizer = self.grammar = None
        self.stream = False
        self.kv = SimpleNamespace(kv_committed_len=0, req_pool_idx=0)
        self.finished_reason: Any = None
        self.finished_len: int | None = None
        self.customized_info: dict[str, list[Any]] = {
            "unmask_step": [],
            "unmask_confidence": [],
        }
        self.retracted_stain = self.is_retracted = False
        self.cached_tokens = self.cached_tokens_device = 0
        self.time_stats = SimpleNamespace(
            set_completion_time=lambda: None, set_retract_time=lambda: None
        )

    def finished(self) -> bool:
        return self.finished_reason is not None

    def update_finish_state(self, new_accepted_len: int) -> None:
        stops = set() if self.sampling_params.ignore_eos else self.eos_token_ids
        begin = len(self.output_ids) - new_accepted_len
        for at in range(begin, len(self.output_ids)):
            if self.output_ids[at] in stops:
                self.finished_reason, self.finished_len = "stop", at + 1
                return
        if len(self.output_ids) >= self.sampling_params.max_new_tokens:
            self.finished_reason = "length"
            self.finished_len = len(self.output_ids)

    @property
    def output_ids_through_stop(self) -> array[int]:
        return self.output_ids[: self.finished_len]

    def reset_for_retract(self) -> None:
        self.is_retracted = self.retracted_stain = True


class _NoKV:
    """Slots without end; every position is persisted once, in order."""

    def obtainable(self) -> int:
        return 1 << 30

    def lock_prefix(self, req: _Request, context: array[int]) -> int:
        return 0

    def open_row(self, req: _Request, prefix: int) -> None:
        req.kv.kv_committed_len = prefix

    def extend(self, req: _Request, end: int) -> bool:
        return True

    def publish(self, state: Any) -> None:
        pass

    def close_row(self, state: Any, *, publish: bool = True) -> None:
        assert state.committed % state.flight[0].canvas.size == 0


class _Runner(BlockRunner):
    """A step whose hidden states are the logits themselves."""

    def __init__(self, logits_of: LogitsFn, table: CanvasTable, vocab: int) -> None:
        model = SimpleNamespace(
            head_logits=lambda hidden: hidden.clone(),
            plain_head=lambda: None,
            vocab_shard_range=lambda: (0, vocab),
            config=SimpleNamespace(vocab_size=vocab),
        )
        super().__init__(
            model_runner=SimpleNamespace(model=model),
            table=table,
            tp_group=SimpleNamespace(world_size=1),
        )
        self.logits_of = logits_of

    def _forward(self, rows: Tensor, starts: list[int]) -> Tensor:
        slots, _, first, _ = rows
        hidden = []
        for slot, start in zip(slots.tolist(), first.tolist(), strict=True):
            end = start + self.block
            ids = torch.where(
                self.table.masked[slot, :end], self.table.mask_id, self.table.tokens[slot, :end]
            )
            hidden.append(self.logits_of(ids)[start:end].float())
        return torch.cat(hidden)


class ModelledRounds:
    """Rounds of requests over `logits_of`: int64 [length] -> float32 [length, vocab]."""

    def __init__(self, logits_of: LogitsFn, checkpoint: Checkpoint, *, vocab: int) -> None:
        block = checkpoint.block
        self.decoding = Decoding.of_server(PolicySet(checkpoint, policy_classes()), "threshold")
        self.table = CanvasTable(
            slots=16, width=64 * block, block=block, mask_id=checkpoint.mask_id, device="cpu"
        )
        self.waiting: list[_Request] = []
        self.records: dict[str, RequestRecord] = {}
        self.rounds = Rounds(
            kv=_NoKV(),  # type: ignore[arg-type]
            table=self.table,
            runner=_Runner(logits_of, self.table, vocab),
            limits=Limits(16, 16, 4, 63 * block),
            requeue=self.waiting.append,  # type: ignore[arg-type]
        )

    def submit(
        self,
        prompt: Sequence[int],
        *,
        tokens: int,
        eos: Sequence[int],
        ignore_eos: bool = False,
        custom: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
        bias: tuple[tuple[int, float], ...] = (),
        min_new_tokens: int = 0,
    ) -> _Request:
        params = self.decoding.parse(custom)
        request = _Request(
            f"r{len(self.records)}", prompt, tokens=tokens, eos=eos, ignore=ignore_eos
        )
        policy = params.policy
        self.records[request.rid] = RequestRecord(
            params,
            TokenOptions(
                sampling=sampling or Sampling(),
                penalties=Penalties(bias=bias),
                min_new_tokens=min_new_tokens,
                trace=True,
            ),
            policy_reads=policy.reads_logits(params.values) or bool(policy.illegal_ids),
        )
        self.waiting.append(request)
        return request

    def step(self) -> bool:
        """Admit what waits and run one forward; False when nothing is left."""
        while self.waiting and self.rounds.admit(
            self.waiting[0],  # type: ignore[arg-type]
            self.records[self.waiting[0].rid],
            0.0,
        ):
            self.waiting.pop(0)
        self.rounds.step()
        return bool(self.rounds.states or self.waiting)

    def run(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.step():
                assert self.table.states_in_use == 0, "a policy's state outlives its request"
                return
        raise AssertionError(f"still running after {limit} forwards")
