"""The scheduler's rounds over a model that is a function of the canvas: no engine.

Planner, canvases, candidates, policies and emission are the real ones; only the forward, the pool
and the host's request object are stood in for, so that a test chooses every logit. A row sees its
own canvas and, of what is in front of it, what forwards have written into its request's pages.
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
from llada_sglang.scheduler.planner import REACH
from llada_sglang.scheduler.rounds import Rounds
from llada_sglang.scheduler.runner import BlockRunner
from llada_sglang.scheduler.running import Limits
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
        self.kv = SimpleNamespace(kv_committed_len=0, kv_allocated_len=0, req_pool_idx=-1)
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


class _PagedKV:
    """A pool of pages of one block, and what forwards have written there: the tokens they saw.

    No tree: a request that comes back is prefilled again.
    """

    def __init__(self, block: int, pages: int) -> None:
        self.block = block
        self.pages = pages
        self.free = list(range(pages))
        self.rows: dict[int, list[int]] = {}
        self.written: dict[int, Tensor] = {}

    def obtainable(self) -> int:
        return len(self.free) * self.block

    def lock_prefix(self, req: _Request, context: array[int]) -> int:
        return 0

    def unlock_prefix(self, req: _Request) -> None:
        pass

    def open_row(self, req: _Request, prefix: int) -> None:
        row = next(index for index in range(self.pages) if index not in self.rows)
        req.kv.req_pool_idx, self.rows[row] = row, []
        req.kv.kv_committed_len = req.kv.kv_allocated_len = 0

    def extend(self, req: _Request, end: int) -> bool:
        held = self.rows[req.kv.req_pool_idx]
        need = end // self.block - len(held)
        if need > len(self.free):
            return False
        held += [self.free.pop() for _ in range(need)]
        req.kv.kv_allocated_len = len(held) * self.block
        return True

    def drop_ahead(self, req: _Request, end: int) -> int:
        held = self.rows[req.kv.req_pool_idx]
        dropped = held[end // self.block :]
        del held[end // self.block :]
        self.free += dropped
        req.kv.kv_allocated_len = len(held) * self.block
        return len(dropped) * self.block

    drop_uncommitted = drop_ahead

    def abandon_row(self, req: _Request) -> None:
        self.drop_ahead(req, 0)
        del self.rows[req.kv.req_pool_idx]

    def publish(self, state: Any) -> None:
        self._check(state)

    def close_row(self, state: Any, *, publish: bool = True) -> None:
        self._check(state)
        self.abandon_row(state.req)

    def _check(self, state: Any) -> None:
        """What counts as persisted was written by a forward that saw the final tokens."""
        req, block = state.req, self.block
        text = [*req.origin_input_ids, *req.output_ids]
        assert state.committed == req.kv.kv_committed_len
        assert state.committed % block == 0
        assert state.committed <= len(text), "only final tokens are committed"
        for index, page in enumerate(self.rows[req.kv.req_pool_idx][: state.committed // block]):
            assert self.written[page].tolist() == text[index * block : (index + 1) * block]


class _Runner(BlockRunner):
    """A step whose hidden states are the logits themselves, of what is in the pages."""

    def __init__(self, logits_of: LogitsFn, table: CanvasTable, vocab: int, kv: _PagedKV) -> None:
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
        self.kv = kv

    def _forward(self, rows: Tensor, starts: list[int], requests: list[int]) -> Tensor:
        slots, requests = rows[:2].tolist()
        places = list(zip(slots, requests, starts, strict=True))
        # K/V of all rows are written before any row reads.
        for slot, request, start in places:
            page = self.kv.rows[request][start // self.block]
            where = slice(start, start + self.block)
            self.kv.written[page] = torch.where(
                self.table.masked[slot, where], self.table.mask_id, self.table.tokens[slot, where]
            )
        hidden = []
        for _, request, start in places:
            read = self.kv.rows[request][: start // self.block + 1]
            ids = torch.cat([self.kv.written[page] for page in read])
            hidden.append(self.logits_of(ids)[start : start + self.block].float())
        return torch.cat(hidden)


class ModelledRounds:
    """Rounds of requests over `logits_of`: int64 [length] -> float32 [length, vocab]."""

    def __init__(
        self,
        logits_of: LogitsFn,
        checkpoint: Checkpoint,
        *,
        vocab: int,
        overlap: bool = False,
        reach: float = REACH,
        pages: int = 4096,
        running: int = 16,
    ) -> None:
        block = checkpoint.block
        self.decoding = Decoding.of_server(PolicySet(checkpoint, policy_classes()), "threshold")
        self.table = CanvasTable(
            slots=running, width=64 * block, block=block, mask_id=checkpoint.mask_id, device="cpu"
        )
        self.waiting: list[_Request] = []
        self.records: dict[str, RequestRecord] = {}
        self.kv = _PagedKV(block, pages)
        self.rounds = Rounds(
            kv=self.kv,  # type: ignore[arg-type]
            table=self.table,
            runner=_Runner(logits_of, self.table, vocab, self.kv),
            limits=Limits(running, running, 4, 63 * block, reach),
            requeue=self.waiting.append,  # type: ignore[arg-type]
            overlap=overlap,
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
        penalties: Penalties | None = None,
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
                penalties=penalties or Penalties(),
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

    def check_idle(self) -> None:
        """Nothing is held where nothing runs."""
        assert self.rounds.idle
        assert self.table.states_in_use == 0, "a policy's state outlives its request"
        assert self.table.free_slots == self.table.tokens.shape[0]
        assert sorted(self.kv.free) == list(range(self.kv.pages))
        assert not self.kv.rows

    def run(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.step():
                self.check_idle()
                return
        raise AssertionError(f"still running after {limit} forwards")
