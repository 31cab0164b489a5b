"""Graphs of the body, embedding to final norm, by number of block rows.

The host's own graph runner is keyed by requests, takes its sizes from a configuration made before
our row budget is known, captures its head with a float32 buffer of [rows x block, vocabulary], and
cuts its output by logits we do not compute; a subclass of it would replace every method. So this is
a runner of its own, on the two seams below that: `BaseCudaGraphRunner`, what `ModelRunner` asks
for, so that the host's recorders of experts, profiler spans and counters see replays as they see
its own, and the graph backend behind `HostRecorder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner.base_cuda_graph_runner import BaseCudaGraphRunner
from sglang.srt.utils.device_timer import device_timer_ctx
from torch import Tensor

from llada_sglang.graphs.crossover import Crossover
from llada_sglang.graphs.inputs import RowInputs, padding_batch
from llada_sglang.graphs.plan import padded_size
from llada_sglang.graphs.recorder import Recorder
from llada_sglang.models.llada2 import HIDDEN_ONLY


class BlockRowGraphRunner(BaseCudaGraphRunner):  # type: ignore[misc]
    """Runs forwards of block rows as graphs; the host asks `can_run_graph` first.

    sizes: row counts to capture, ascending. hidden: [sizes[-1] * block, hidden], where every graph
    leaves its hidden states, rows of padding included; the head's graphs read it there.
    """

    def __init__(
        self,
        model_runner: Any,
        *,
        sizes: Sequence[int],
        block: int,
        recorder: Recorder,
        padding: bool = True,
    ) -> None:
        super().__init__(model_runner)
        self.capture_bs = list(sizes)
        self.block = block
        self.padding = padding
        self.crossover = Crossover.always(sizes)
        self.bs = 0
        self.hidden: Tensor = torch.zeros(
            (sizes[-1] * block, model_runner.model.config.hidden_size),
            dtype=model_runner.dtype,
            device=model_runner.device,
        )
        self._attention = model_runner.attn_backend
        self._inputs = RowInputs(most=sizes[-1], block=block, device=model_runner.device)
        self._recorder = recorder

    def capture(self) -> None:
        """Record all sizes, the largest first, so that the smaller ones find its memory."""
        most = self.capture_bs[-1]
        self._attention.init_cuda_graph_state(most, most * self.block)
        with self.model_context():
            for size in reversed(self.capture_bs):
                self.capture_one_shape(size)

    def capture_prepare(self, size: int, *args: Any, **kwargs: Any) -> Any:
        """The static batch of `size` padding rows."""
        vocabulary = self.model_runner.model.config.vocab_size
        source = padding_batch(size, self.block, vocabulary, self.device)
        return self._inputs.load(source, 0, size, size)

    def capture_one_shape(self, size: int, *args: Any, **kwargs: Any) -> None:
        """Record one size."""
        batch = self.capture_prepare(size)
        attention, model = self._attention, self.model_runner.model
        hidden = self.hidden[: size * self.block]

        def run() -> None:
            with forward_context(ForwardContext(attn_backend=attention), forward_batch=batch):
                attention.init_forward_metadata_in_graph(batch)
                output = model.forward(batch.input_ids, batch.positions, batch)
                hidden.copy_(output.hidden_states)

        with forward_context(ForwardContext(attn_backend=attention), forward_batch=batch):
            attention.init_forward_metadata_out_graph(batch, in_capture=True)
            self._recorder.record(("body", size), run, attention.on_after_cuda_graph_warmup)

    def can_run_graph(self, forward_batch: Any) -> bool:
        """Whether `execute` takes this batch: block rows without logits, of a size worth it."""
        return (
            forward_batch.forward_mode.is_dllm_extend()
            and bool((forward_batch.model_specific_states or {}).get(HIDDEN_ONLY))
            and self._parts(forward_batch.batch_size) is not None
            and not self._prefers_eager(forward_batch)
        )

    def load_batch(self, forward_batch: Any, begin: int = 0, end: int | None = None) -> int:
        """Put rows [begin, end) where the graphs read, and plan their attention.

        Returns the size to replay.
        """
        end = forward_batch.batch_size if end is None else end
        size = padded_size(end - begin, self.capture_bs)
        assert size is not None, f"{end - begin} rows, but graphs of {self.capture_bs} rows only"
        batch = self._inputs.load(forward_batch, begin, end, size)
        self._attention.init_forward_metadata_out_graph(batch)
        return size

    def execute(self, forward_batch: Any, pp_proxy_tensors: Any = None, **kwargs: Any) -> Any:
        """Hidden states [rows * block, hidden] of a batch that `can_run_graph`, and no logits.

        Valid until the next forward. Where the rows are run in turns, those of one request have to
        be in the order of its blocks: a turn then reads what earlier turns left in the KV pool.
        """
        rows = forward_batch.batch_size
        parts = self._parts(rows)
        assert parts is not None, f"no graph for {rows} rows, ask can_run_graph first"
        category = forward_batch.forward_mode.name.lower()
        with self.model_context(), device_timer_ctx(self.model_runner.device_timer, category):
            if len(parts) == 1:
                hidden = self._turn(forward_batch, 0, rows)
            else:
                hidden = self.hidden.new_empty((rows * self.block, self.hidden.shape[1]))
                begin = 0
                for part in parts:
                    end = begin + part
                    into = hidden[begin * self.block : end * self.block]
                    into.copy_(self._turn(forward_batch, begin, end))
                    begin = end
        return LogitsProcessorOutput(next_token_logits=None, hidden_states=hidden)

    def _prefers_eager(self, forward_batch: Any) -> bool:
        # A graph's attention has one shape; a backend may know a better one for long prompts.
        prefers = getattr(self._attention, "prefers_eager", None)
        return prefers is not None and prefers(forward_batch)

    def _parts(self, rows: int) -> list[int] | None:
        parts = self.crossover.parts(rows, self.capture_bs)
        if parts is None or (not self.padding and not {*parts} <= {*self.capture_bs}):
            return None
        return parts

    def _turn(self, forward_batch: Any, begin: int, end: int) -> Tensor:
        # The host looks up `bs` to cut what it recorded beside the forward.
        self.bs = self.load_batch(forward_batch, begin, end)
        self._recorder.replay(("body", self.bs))
        return self.hidden[: (end - begin) * self.block]
