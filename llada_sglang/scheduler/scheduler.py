"""SGLang's scheduler with the diffusion path replaced by rounds of block rows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq
from sglang.srt.distributed.parallel_state import get_tp_group
from sglang.srt.managers.schedule_batch import NextBatchPlan, ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.observability.req_time_stats import set_time_batch

from llada_sglang import env
from llada_sglang.checkpoint import read_family
from llada_sglang.errors import DecodeParamError
from llada_sglang.scheduler import algorithm
from llada_sglang.scheduler.assembly import assemble
from llada_sglang.scheduler.options import TokenOptions
from llada_sglang.scheduler.rounds import Rounds
from llada_sglang.scheduler.state import RequestRecord
from llada_sglang.serving.metrics import DiffusionReporter
from llada_sglang.serving.output import DiffusionOutputStreamer
from llada_sglang.serving.requests import RequestRules
from llada_sglang.serving.rules import parse_decoding, server_decoding

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import PauseGenerationReqInput, TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

STEPS_PER_ROUND = 4
"""Most steps between two looks at the input queue, while nobody waits and nobody streams."""

GRAMMAR_POLL_SECONDS = 0.005
"""How long a turn waits for grammars to be compiled where there is nothing else to do."""


class DiffusionScheduler(Scheduler):
    """Runs LLaDA2 requests as block rows; every other model and algorithm as the host does.

    The running requests are the reqs of `running_batch`, so that what the host does with
    running requests (aborts, pause, load reports, idle checks, priorities) holds for ours.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rounds: Rounds | None = None
        self._incoming: TokenizedGenerateReqInput | None = None
        if self._runs_rounds:
            self._init_rounds()

    @property
    def _runs_rounds(self) -> bool:
        config = self.dllm_config
        return config is not None and config.algorithm == algorithm.NAME

    def init_metrics_reporter(self) -> None:
        """Report rounds of block rows; called by the host's constructor."""
        if not self._runs_rounds:
            super().init_metrics_reporter()
            return
        self.metrics_reporter = DiffusionReporter(
            scheduler=self,
            metrics_collector_context=self.metrics_collector_context,
            metrics_collector=self.metrics_collector,
        )

    def _init_rounds(self) -> None:
        config = self.dllm_config
        block = config.block_size
        if self.page_size != block:
            raise RuntimeError(f"page size {self.page_size} must equal the block size {block}")
        self.rules = RequestRules(
            vocab_size=self.model_config.vocab_size,
            block_size=block,
            decoding=server_decoding(
                read_family(self.server_args.model_path, revision=self.server_args.revision),
                config.algorithm_config or parse_decoding(env.load().decoding),
            ),
        )
        self._seeds = np.random.default_rng(self.random_seed)
        self.rounds = assemble(self, requeue=self._requeue_retracted)
        self.running_batch = ScheduleBatch.init_new(
            [],
            self.req_to_token_pool,
            self.token_to_kv_pool_allocator,
            self.tree_cache,
            self.model_config,
            self.enable_overlap,
            self.spec_algorithm,
            dllm_config=config,
        )
        self.running_batch.forward_mode = ForwardMode.DLLM_EXTEND

    def get_output_streamer_class(self) -> type[SchedulerOutputStreamer]:
        """Add the diffusion counters to every response."""
        return DiffusionOutputStreamer

    def validate_dllm_request(self, req: Req) -> str | None:
        """Parse and check what the request asks of decoding; a string refuses it with a 400."""
        if self.rounds is None:
            return super().validate_dllm_request(req)
        try:
            params = self.rules.admit(req, self._incoming)
        except DecodeParamError as error:
            return str(error)
        # Drawn for every request, so that all ranks stay at the same place of the sequence.
        seed = int(self._seeds.integers(2**63))
        options = TokenOptions.read(req, seed=seed, trace=params.trace)
        policy = params.policy
        req.dllm_algo_state = RequestRecord(
            params,
            options,
            policy_reads=policy.reads_logits(params.values) or bool(policy.illegal_ids),
        )
        if params.trace:
            req.customized_info = {"unmask_step": [], "unmask_confidence": []}
        return None

    def handle_generate_request(self, recv_req: TokenizedGenerateReqInput) -> None:
        """As the host's; what it has not copied to its request yet stays in reach of the rules."""
        self._incoming = recv_req
        try:
            super().handle_generate_request(recv_req)
        finally:
            self._incoming = None

    def get_next_batch_to_run(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None
    ) -> NextBatchPlan:
        """End what was aborted, admit what fits; the batch is everything that runs."""
        rounds = self.rounds
        if rounds is None:
            return super().get_next_batch_to_run(running_batch, last_batch)
        if any(state.req.to_finish for state in rounds.states):
            rounds.flush()
            for state in [s for s in rounds.states if s.req.to_finish]:
                state.req.update_finish_state()
                rounds.end(state)
        self._admit_waiting()
        self._stream_changed()
        running_batch.reqs = [state.req for state in rounds.states]
        running_batch.batch_is_full = bool(self.waiting_queue)
        return NextBatchPlan(
            batch_to_run=running_batch if running_batch.reqs else None,
            running_batch=running_batch,
        )

    def _admit_waiting(self) -> None:
        assert self.rounds is not None
        self._collect_grammars()
        if not self.waiting_queue:
            return
        self.policy.calc_priority(
            self.waiting_queue, self.running_batch, processed_tokens=self.processed_tokens_counter
        )
        growth = self.new_token_ratio_tracker.current
        waiting, admitted = list(self.waiting_queue), []
        for req in waiting:
            if req.to_finish:
                # Refused after it was queued; the host would run one forward for the reason.
                req.update_finish_state()
                self.rounds.changed[id(req)] = req
            elif self._admit(req, growth):
                admitted.append(req)
            else:
                break
            self.waiting_queue.remove(req)
        if admitted:
            set_time_batch(admitted, "set_forward_entry_time")

    def _collect_grammars(self) -> None:
        """Queue the requests whose grammar is compiled, in threads of the host's."""
        manager = self.grammar_manager
        if not manager.has_waiting_grammars():
            return
        # The host would wait for them; beside running requests one look has to do.
        if self.running_batch.reqs or self.waiting_queue:
            manager.SGLANG_GRAMMAR_POLL_INTERVAL = 1e-6
        else:
            manager.SGLANG_GRAMMAR_POLL_INTERVAL = GRAMMAR_POLL_SECONDS
        for req in manager.get_ready_grammar_requests():
            self._add_request_to_queue(req)

    def _admit(self, req: Req, growth: float) -> bool:
        assert self.rounds is not None
        if self.rounds.admit(req, req.dllm_algo_state, growth):
            return True
        if not self.enable_priority_preemption:
            return False
        lower = [s for s in self.rounds.states if self._outranks(req, s.req)]
        for state in sorted(lower, key=lambda s: (self._rank(s.req), s.order), reverse=True):
            self.rounds.retract(state)
            if self.rounds.admit(req, req.dllm_algo_state, growth):
                return True
        return False

    def _rank(self, req: Req) -> int:
        sign = 1 if self.schedule_low_priority_values_first else -1
        return sign * int(req.priority or 0)

    def _outranks(self, req: Req, other: Req) -> bool:
        return self._rank(other) - self._rank(req) > self.priority_scheduling_preemption_threshold

    def _requeue_retracted(self, req: Req) -> None:
        # In front, and past max_queued_requests: it was accepted already.
        self.waiting_queue.insert(0, req)
        req.time_stats.set_wait_queue_entry_time()
        self.metrics_reporter.report_retraction(req)
        self.new_token_ratio_tracker.current = min(
            1.0, self.new_token_ratio_tracker.current + self.new_token_ratio_tracker.decay * 50
        )

    def run_batch(self, batch: ScheduleBatch, pp_proxy_tensors: Any = None) -> Any:
        """Run one round: up to STEPS_PER_ROUND steps, one where somebody waits for it to end.

        It ends with the step that ends a request: its client, who may have more to ask, is not
        kept waiting for what the others do, nor its place empty. So it does with the one during
        which something came in.
        """
        rounds = self.rounds
        if rounds is None or batch is not self.running_batch:
            return super().run_batch(batch, pp_proxy_tensors)
        self.metrics_reporter.record_scheduler_active(time.monotonic_ns())
        self.forward_ct: int = self.forward_ct + 1
        batch.forward_iter = self.forward_ct
        batch.launch_ts = time.monotonic()
        batch.after_idle_gap = bool(self._sched_idled)
        self._sched_idled: bool = False
        self.profiler_manager._profile_batch_predicate(batch)
        hurry = bool(self.waiting_queue) or any(req.stream for req in batch.reqs)
        for _ in range(1 if hurry else STEPS_PER_ROUND):
            rounds.step()
            if not rounds.states or any(req.finished() for req in rounds.changed.values()):
                break
            if self._knocked():
                break
        self.new_token_ratio_tracker.decay_step()
        return GenerationBatchResult(can_run_cuda_graph=False)

    def _knocked(self) -> bool:
        """Whether something has come in that the host will take at its next look.

        All ranks have to run as many steps, and only the first one hears: with several this is
        never so, since to tell the others would take as long as what the host does to look.
        """
        socket = self.recv_from_tokenizer
        if get_tp_group().world_size > 1 or not isinstance(socket, zmq.Socket):
            return False
        return bool(socket.poll(0))

    def process_batch_result_dllm(
        self, batch: ScheduleBatch, result: GenerationBatchResult
    ) -> None:
        """Send what the round made, and count it."""
        rounds = self.rounds
        if rounds is None:
            super().process_batch_result_dllm(batch, result)
            return
        batch.reqs = [state.req for state in rounds.states]
        self._stream_changed()
        tally, rounds.tally = rounds.tally, type(rounds.tally)()
        self.metrics_reporter.report_round(batch, tally)

    def _stream_changed(self) -> None:
        assert self.rounds is not None
        if self.rounds.changed:
            changed = list(self.rounds.changed.values())
            self.rounds.changed.clear()
            logprobs = any(req.return_logprob for req in changed)
            self.output_streamer.stream_output(changed, logprobs)

    def _record_step_counters(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        # The host would book every denoise step as a prefill.
        if self.rounds is None:
            super()._record_step_counters(batch, result)

    def pause_generation(self, recv_req: PauseGenerationReqInput) -> None:
        """Retract what runs before the host does, which would free KV we still count on."""
        if self.rounds is not None:
            self.rounds.flush()
            if recv_req.mode == "retract":
                for state in sorted(self.rounds.states, key=lambda s: s.order, reverse=True):
                    self.rounds.retract(state, keep=False)
            self.running_batch.reqs = [state.req for state in self.rounds.states]
            self._stream_changed()
        super().pause_generation(recv_req)
