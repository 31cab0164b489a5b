"""The diffusion path of the host's scheduler, and what ours is built on."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.managers.scheduler:Scheduler",
        kind=Kind.REPLACE,
        hook="llada_sglang.scheduler.scheduler:DiffusionScheduler",
        why="a diffusion round is a batch of block rows; the host builds one chunked-prefill row "
        "per request, prefill before decode, and one forward per scheduler round",
        how="subclass; overrides validate_dllm_request, get_next_batch_to_run, run_batch, "
        "process_batch_result_dllm, pause_generation, _record_step_counters and "
        "get_output_streamer_class, all of them for our algorithm only",
        upstream="sgl-project/sglang#39499",
        remove_when="the host has a scheduler factory for diffusion models",
        fingerprints={
            "0.5.23": "sha256:f66043c88deb58f8cf8dc7b527e1a2d717c3739a35335d209c7462f8a5f54a89",
        },
    ),
    Patch(
        target="sglang.srt.managers.tokenizer_manager:TokenizerManager.update_request_meta_info",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.meta_info:plain_counters",
        why="the host appends what each chunk brings to a list, also where it is one number",
        how="our three counters are set to their last value, everything else is left to the host",
        remove_when="request-level customized_info is sent with the last chunk",
        fingerprints={
            "0.5.23": "sha256:137a4e82ed8771de88d7cb5565fd1be3ecd6d19bec875020c768ba809320f8dd",
        },
    ),
    Patch(
        target="sglang.srt.managers.scheduler_components.output_streamer:SchedulerOutputStreamer",
        kind=Kind.SUBCLASS,
        why="responses have to say how many forwards they took",
        how="its hook for additional output fields adds three counters",
        fingerprints={
            "0.5.23": "sha256:bf93a744cf527ae1dfe95a677c25b06bd358f7cd0de91e5d536fe6ea3fec76be",
        },
    ),
    Patch(
        target="sglang.srt.dllm.algorithm.base:DllmAlgorithm",
        kind=Kind.SUBCLASS,
        why="the host knows a decoding algorithm by its class",
        how="a marker: its loop is never entered",
        fingerprints={
            "0.5.23": "sha256:5d3b7c1237ae7924ffe7b660d65fdebd7589426f00a5b01e04c99e2a229a25d3",
        },
    ),
    Patch(
        target="sglang.srt.managers.schedule_batch:Req",
        kind=Kind.USE,
        why="its output, finish and KV fields are kept as the host keeps them",
        fingerprints={
            "0.5.23": "sha256:05f12300ac55a5425b095e2ff74f95f9e160d5d79cb457eecabf8325f7b7e008",
        },
    ),
    Patch(
        target="sglang.srt.managers.schedule_batch:ScheduleBatch",
        kind=Kind.USE,
        why="its `reqs` are the running requests, for everything in the host that looks there",
        fingerprints={
            "0.5.23": "sha256:6db4b835a70420455a5770ce5b34b82f520ae4b3fafcef1661dba6969c06787a",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.common:release_kv_cache",
        kind=Kind.USE,
        why="publishes the committed blocks and frees the rest",
        fingerprints={
            "0.5.23": "sha256:90e19434d1fa8c220ddc6bf9349fcbf831e46de1310d92156887a113045435f9",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.common:match_kv_cache",
        kind=Kind.USE,
        why="finds the cached prefix",
        fingerprints={
            "0.5.23": "sha256:1f3b0e2c895cf0ad687d3f98329b74d0aab90e85babc2d105806fe176b7de009",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.base_prefix_cache:BasePrefixCache",
        kind=Kind.USE,
        why="the contract of lock, checkpoint and free_kv_row",
        fingerprints={
            "0.5.23": "sha256:4d15d8e9ce84bd047c169b9b804d6a855eaa04a7e99599cc946f3378a8b7c209",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.allocator.paged:PagedTokenToKVPoolAllocator.alloc",
        kind=Kind.USE,
        why="hands out whole pages, so whole blocks",
        fingerprints={
            "0.5.23": "sha256:60eebfb935a9cef9b79c1c9fad7c6477a7e4162f38bcb5bc342b4654f882898e",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.forward_batch_info:ForwardBatch",
        kind=Kind.USE,
        why="carries the rows of a forward; built by us, field by field",
        fingerprints={
            "0.5.23": "sha256:c18561de596fb762fb228f2d07960294f07bdd8c0cfeedcbc5d0307783971e27",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.model_runner:ModelRunner._forward_raw",
        kind=Kind.USE,
        why="what runs between our batch and the model",
        fingerprints={
            "0.5.23": "sha256:1281a6b06f680b7894e3e2414703c184c0fa9bf000c83458c5bb97ff40944f57",
        },
    ),
)
