"""What the graphs of block rows are built on."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.model_executor.runner.base_cuda_graph_runner:BaseCudaGraphRunner",
        kind=Kind.SUBCLASS,
        why="the host's graphs are captured by requests, with the head and all its logits in them",
        how="forwards of block rows as graphs by row count, without the head; set as the model "
        "runner's `decode_cuda_graph_runner`",
        fingerprints={
            "0.5.23": "sha256:b8d8bb0b8ba9285739c098fd932cf1c4a5f48c2e2c9262c4e5a5ab8a10ac045e",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.runner.base_runner:BaseRunner",
        kind=Kind.USE,
        why="what a runner of the host knows of its model, and how it is asked",
        fingerprints={
            "0.5.23": "sha256:3234979c8027eccfdf4a37fa48a5221c8a746f28525dd2ecc717fdf6a400613e",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.runner.base_cuda_graph_runner:freeze_gc",
        kind=Kind.USE,
        why="keeps the garbage collector out of a capture",
        fingerprints={
            "0.5.23": "sha256:db385e68948ec8ecf5d5bcf6c0b07eef482c9a1c975c23beabadce54afd2b3d4",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.model_runner:ModelRunner.forward",
        kind=Kind.USE,
        why="what the host records of every forward, graph or not",
        fingerprints={
            "0.5.23": "sha256:26fbd69d337720a4d1ad37c7e0e4ed1294881ddada0ebbb4c4a488cad8c7062f",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.model_runner_components.cuda_graph_setup:"
        "capture_decode_graph",
        kind=Kind.USE,
        why="makes no graph runner where the host's graphs are off; ours takes its place",
        fingerprints={
            "0.5.23": "sha256:98b24a36e0212367bc23e48dc4c87c69b5030565f5f1cdc20c92bdf855ebef5a",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.runner_backend.full_cuda_graph_backend:"
        "FullCudaGraphBackend",
        kind=Kind.USE,
        why="warms up, captures and replays, in the host's memory pool",
        fingerprints={
            "0.5.23": "sha256:57f476a0c1c04e8f95d6401d168a0584a4da0df6951032820d4a54e5a23609f3",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.runner_utils.capture_mode:model_capture_mode",
        kind=Kind.USE,
        why="tells layers that they are captured: shared and routed experts then overlap",
        fingerprints={
            "0.5.23": "sha256:f4e44b8c148c86572108e91a89614782eaa1721527c6851420da3e60454aa7a8",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.runner_utils.pool:"
        "get_or_create_global_graph_capture_stream",
        kind=Kind.USE,
        why="the stream on which the host captures",
        fingerprints={
            "0.5.23": "sha256:22f090589c3c334e461b4591f811265ac957ba384202677f2d91379ccc33bde2",
        },
    ),
    Patch(
        target="sglang.srt.distributed.parallel_state:graph_capture",
        kind=Kind.USE,
        why="makes the communicators of all groups ready to be captured",
        fingerprints={
            "0.5.23": "sha256:32d9c0491e3832c57fdfbbe95c9413d8c2c6f6132e08b02429db39bb0db01f9e",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.forward_context:ForwardContext",
        kind=Kind.USE,
        why="names the attention backend to the layers",
        fingerprints={
            "0.5.23": "sha256:9e7a1a24955c803616beca90b7d599b07e0d602b36df63e4a175debb7afb8d09",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.forward_context:forward_context",
        kind=Kind.USE,
        why="puts a forward context around a captured forward",
        fingerprints={
            "0.5.23": "sha256:8ca348ec74918412223886277ca0680db29b5b5de08568ee6ce8ae62f621a009",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.allocator.paged:PagedTokenToKVPoolAllocator.clear",
        kind=Kind.USE,
        why="never hands out page 0, where padding rows write",
        fingerprints={
            "0.5.23": "sha256:bdd7b3441edfbf839f549b9a0e8c6e0c5d64c93c88b8c73b477427acd2b4fee7",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.graph_memory_usage:replace_graph_memory_usage",
        kind=Kind.USE,
        why="reports the memory of graphs",
        fingerprints={
            "0.5.23": "sha256:cf50494659073b748301a6cfa271ed863d02ce59630a1886f6f2e34ebb987309",
        },
    ),
    Patch(
        target="sglang.srt.utils.common:get_available_gpu_memory",
        kind=Kind.USE,
        why="how much the graphs may take",
        fingerprints={
            "0.5.23": "sha256:7032c4b3bc720265e03d106848a47bf7dd6de8451f05d97b676a7a5c66e2ae43",
        },
    ),
    Patch(
        target="sglang.srt.utils.device_timer:device_timer_ctx",
        kind=Kind.USE,
        why="times forwards for the metrics",
        fingerprints={
            "0.5.23": "sha256:0f18ef6d4de7dec7405e748dc3f57676fe419ffd8d9afb86a387f27d9c7fde5e",
        },
    ),
    Patch(
        target="sglang.srt.runtime_context:get_exec",
        kind=Kind.USE,
        why="tells whether the host saves graph memory and collects garbage in a capture",
        fingerprints={
            "0.5.23": "sha256:3322e746f741889a4354d8d1f4aedb31f6699b6b307f79b4fb9d64f713c25e59",
        },
    ),
    Patch(
        target="sglang.srt.layers.moe.utils:get_moe_a2a_backend",
        kind=Kind.USE,
        why="tells whether experts exchange tokens between ranks",
        fingerprints={
            "0.5.23": "sha256:7b5b12b6ef3dc5adf38c5b9b21c49f438ac485b3e8659c4a5574bdd9739a0d2c",
        },
    ),
)
