"""The real scheduler in this process, without HTTP: requests in, tokens out, step by step.

Everything is SGLang's own (worker, pools, tree, model); only the sockets are left out, so that a
test decides at which step a request arrives, is aborted or is retracted.
"""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class Answer:
    """What came out for one request so far."""

    ids: list[int] = field(default_factory=list)
    chunks: list[list[int]] = field(default_factory=list)
    finish: dict[str, Any] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    traces: dict[str, list[Any]] = field(default_factory=dict)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    id_logprobs: list[list[float]] = field(default_factory=list)


class _Collector:
    """Stands where the detokenizer's socket is."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}

    def send_output(self, payload: Any, request: Any = None) -> None:
        for i, rid in enumerate(getattr(payload, "rids", None) or [payload.rid]):
            answer = self.answers.setdefault(rid, Answer())
            if not hasattr(payload, "output_ids"):
                answer.finish = payload.finished_reason or {"type": "abort"}
                continue
            new = list(payload.output_ids[i])
            answer.ids += new
            answer.chunks.append(new)
            assert answer.finish is None, f"{rid} got output after its end"
            answer.finish = payload.finished_reasons[i]
            info = getattr(payload.customized_info, "data", payload.customized_info) or {}
            for key, values in info.items():
                if values[i]:
                    answer.info[key] = values[i][-1]
                    answer.traces.setdefault(key, []).extend(values[i])
            if payload.output_token_logprobs_val:
                assert list(payload.output_token_logprobs_idx[i]) in ([], new)
                answer.logprobs += payload.output_token_logprobs_val[i]
                answer.top_logprobs += [
                    list(zip(ids, values, strict=True))
                    for ids, values in zip(
                        payload.output_top_logprobs_idx[i],
                        payload.output_top_logprobs_val[i],
                        strict=True,
                    )
                ]
                answer.id_logprobs += payload.output_token_ids_logprobs_val[i]


class InProcessEngine:
    """One scheduler over a checkpoint directory. Build one per process: SGLang keeps globals."""

    def __init__(self, model: str, *flags: str) -> None:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.managers import scheduler as host
        from sglang.srt.runtime_context import SpawnRanks, publish
        from sglang.srt.server_args import PortArgs, prepare_server_args

        server_args = prepare_server_args(["--model-path", model, *flags])
        publish(
            server_args,
            role="scheduler",
            ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0),
        )
        self.scheduler = host.Scheduler(server_args, PortArgs.init_new(server_args))
        self.collector = _Collector()
        streamer = self.scheduler.output_streamer
        streamer.send_to_detokenizer = self.collector
        self.scheduler.ipc_channels = replace(
            self.scheduler.ipc_channels, send_to_tokenizer=self.collector
        )
        # On a CPU an idle turn sleeps until a socket wakes it or a second is over.
        self.scheduler.idle_sleeper = None
        self.tokenizer = self.scheduler.tokenizer
        self._ids = itertools.count()

    @property
    def answers(self) -> dict[str, Answer]:
        return self.collector.answers

    def submit(self, prompt: str | list[int], **sampling: Any) -> str:
        """Queue a request; returns its id. Extra keywords are sampling parameters."""
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.observability.req_time_stats import SchedulerReqTimeStats
        from sglang.srt.sampling.sampling_params import SamplingParams

        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        stream = sampling.pop("stream", False)
        priority = sampling.pop("priority", None)
        return_logprob = sampling.pop("return_logprob", False)
        top_logprobs_num = sampling.pop("top_logprobs_num", 0)
        token_ids_logprob = sampling.pop("token_ids_logprob", None)
        logprob_start_len = sampling.pop("logprob_start_len", -1)
        params = SamplingParams(**({"temperature": 0.0} | sampling))
        params.normalize(self.tokenizer)
        rid = f"r{next(self._ids)}"
        self.collector.answers[rid] = Answer()
        request = TokenizedGenerateReqInput(
            rid=rid,
            input_text="",
            input_ids=array("q", ids),
            input_embeds=None,
            token_type_ids=None,
            mm_inputs=None,
            sampling_params=params,
            return_logprob=return_logprob,
            logprob_start_len=logprob_start_len,
            top_logprobs_num=top_logprobs_num,
            token_ids_logprob=token_ids_logprob,
            stream=stream,
            priority=priority,
            time_stats=SchedulerReqTimeStats(),
        )
        self.scheduler.handle_generate_request(request)
        return rid

    def abort(self, rid: str) -> None:
        import torch
        from sglang.srt.managers.io_struct import AbortReq

        with torch.inference_mode():
            self.scheduler.abort_request(AbortReq(rid=rid))

    def retract(self, state: Any, *, keep: bool = True) -> None:
        """Take a request back, whose step under way may have ended it."""
        import torch

        with torch.inference_mode():
            self.scheduler.rounds.retract(state, keep=keep)

    def flush(self) -> None:
        """Take the result of the step under way."""
        import torch

        with torch.inference_mode():
            self.scheduler.rounds.flush()

    def pause(self, mode: str) -> None:
        import torch
        from sglang.srt.managers.io_struct import PauseGenerationReqInput

        with torch.inference_mode():
            self.scheduler.pause_generation(PauseGenerationReqInput(mode=mode))

    def tick(self) -> bool:
        """One turn of the host's event loop; False when there was nothing to run."""
        busy = self.tick_unchecked()
        if not busy:
            self.scheduler._sched_idled = True
            self.scheduler.on_idle()
        return busy

    def tick_unchecked(self) -> bool:
        """`tick` without the host's idle checks, for a pool that a test holds a part of."""
        import torch

        s = self.scheduler
        batch = self.plan()
        with torch.inference_mode():
            if batch:
                s.process_batch_result(batch, s.run_batch(batch))
            s.last_batch = batch
        return batch is not None

    def plan(self) -> Any:
        """What the next turn would run, admitted; None when there is nothing."""
        import torch

        s = self.scheduler
        with torch.inference_mode():
            plan = s.get_next_batch_to_run(running_batch=s.running_batch, last_batch=s.last_batch)
        s.running_batch = plan.running_batch
        return plan.batch_to_run

    def run(self, limit: int = 10_000) -> None:
        """Turn the loop until nothing runs; the idle turn checks pool, rows and tree."""
        for _ in range(limit):
            if not self.tick():
                if self.scheduler.grammar_manager.has_waiting_grammars():
                    continue
                assert self.scheduler.is_fully_idle(), "requests are left but nothing runs"
                return
        raise AssertionError(f"still running after {limit} turns")
