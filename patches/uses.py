"""Symbols of the host that we call or read as they are."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.plugins:load_plugins",
        kind=Kind.USE,
        why="calls our entry point, then applies the hooks",
        fingerprints={
            "0.5.23": "sha256:cd2a423a31293f61ca0e01cfeb4ca9ba554b8be1b464e0130cec49aca18fa89e",
        },
    ),
    Patch(
        target="sglang.srt.plugins.hook_registry:HookRegistry",
        kind=Kind.USE,
        why="applies our hooks; its closures are what proves them applied",
        fingerprints={
            "0.5.23": "sha256:84240a183d866c5baf102eaa9b387806c71f984503f78ec938e4cbfd1ddb7ac6",
        },
    ),
    Patch(
        target="sglang.srt.plugins.hook_registry:_wrap_fn",
        kind=Kind.USE,
        why="its closures are what proves a hook applied",
        fingerprints={
            "0.5.23": "sha256:864f78c5d65446667245a8d38a1e51652f1c3b9d81e988befb350f29a6efcd17",
        },
    ),
    Patch(
        target="sglang.srt.managers.scheduler:run_scheduler_process",
        kind=Kind.USE,
        why="loads the plugins first and looks `Scheduler` up as a global afterwards",
        fingerprints={
            "0.5.23": "sha256:f52f0de806e29a75440839ff0cb3af43405304789adc571585ffd83a8a5c721b",
        },
    ),
    Patch(
        target="sglang.srt.arg_groups.pipeline:run_resolution_pipeline",
        kind=Kind.USE,
        why="the order of its steps decides that our defaults come before the host's",
        fingerprints={
            "0.5.23": "sha256:be3a14a9aef190734a5e3de19f9fc3550d201bc3fa0a75486709e65db30c80b2",
        },
    ),
    Patch(
        target="sglang.srt.arg_groups.overrides:declare_resolution",
        kind=Kind.USE,
        why="declares our defaults",
        fingerprints={
            "0.5.23": "sha256:18a2031a41091c172ef8c3cbac67660f4acefea01838b9bd69c923d6ce89d872",
        },
    ),
    Patch(
        target="sglang.srt.arg_groups.overrides:resolving_view",
        kind=Kind.USE,
        why="reads the arguments as they stand during resolution",
        fingerprints={
            "0.5.23": "sha256:60cb1352aaeba11b3f3805e2262656d3415f03c1b30146d8d8f1586b72417083",
        },
    ),
    Patch(
        target="sglang.srt.utils.common:get_device_memory_capacity",
        kind=Kind.USE,
        why="bounds the number of running requests on an accelerator",
        fingerprints={
            "0.5.23": "sha256:53114836a77a8e31fad7ed9c13807c102565f4efa88729b7295852d6f70aa3e3",
        },
    ),
    Patch(
        target="sglang.srt.plugins.hook_registry:HookSource",
        kind=Kind.USE,
        why="names us in the log of applied hooks",
        fingerprints={
            "0.5.23": "sha256:b17c80ffc3b3d3c97ff60b260308c021c073d4a7681276e67790c3abe5760896",
        },
    ),
    Patch(
        target="sglang.srt.plugins.hook_registry:HookType",
        kind=Kind.USE,
        why="the kinds of hooks",
        fingerprints={
            "0.5.23": "sha256:26b8625e60dd4512c4bc8b0991b3951a42c551830dde6153e86af0c4820aaadb",
        },
    ),
    Patch(
        target="sglang.srt.managers.schedule_batch:FINISH_LENGTH",
        kind=Kind.USE,
        why="ends a request that has no room left",
        fingerprints={
            "0.5.23": "sha256:cdd3a15b11b0bec790e48ef30a3f6c197bfe5802279f84e053c0458cce33b368",
        },
    ),
    Patch(
        target="sglang.srt.managers.schedule_batch:NextBatchPlan",
        kind=Kind.USE,
        why="what the scheduler loop wants from us",
        fingerprints={
            "0.5.23": "sha256:8697610fc85da96262b985ec3573bb48e717aa7280117645f948fb8e786e54a6",
        },
    ),
    Patch(
        target="sglang.srt.managers.utils:GenerationBatchResult",
        kind=Kind.USE,
        why="what the scheduler loop gets from a round",
        fingerprints={
            "0.5.23": "sha256:45ad4960c8f1b241ed256570c6774a8df0225faf6061a0a8491d518932c7e347",
        },
    ),
    Patch(
        target="sglang.srt.managers.io_struct:PauseGenerationReqInput",
        kind=Kind.USE,
        why="tells the modes of a pause",
        fingerprints={
            "0.5.23": "sha256:279ef5785808fdc53fbf173ea94c20b59910d1f65b65ef9f73c87086b49d293f",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.allocator:BaseTokenToKVPoolAllocator",
        kind=Kind.USE,
        why="the contract of the KV pool",
        fingerprints={
            "0.5.23": "sha256:f15671bd7b7d11af9a33fa40da04505f3ebea15e42a7ab88bce2b0c949ed2c95",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.common:evict_from_tree_cache",
        kind=Kind.USE,
        why="frees cached blocks for running requests",
        fingerprints={
            "0.5.23": "sha256:7ce32fb173d53a7db266de99189248cdb067add9ca81474347c6bcaa6812fb58",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.memory_pool:ReqToTokenPool",
        kind=Kind.USE,
        why="holds the page tables",
        fingerprints={
            "0.5.23": "sha256:8cb7eb3124eba8bb4c5da2d8f74a9dbc05442203ebb58635d4272a8a8ed92886",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.forward_batch_info:ForwardMode",
        kind=Kind.USE,
        why="marks a forward of block rows",
        fingerprints={
            "0.5.23": "sha256:3ea142dfd1cd42d9ac92dd85f33f0a7949274483e0f0d9614191de9c7504116b",
        },
    ),
    Patch(
        target="sglang.srt.observability.req_time_stats:set_time_batch",
        kind=Kind.USE,
        why="times of a request for its metrics",
        fingerprints={
            "0.5.23": "sha256:d4b3f1e91fa6451ef643a4ecea9177fa7d776d559c5bce22a26c0427ce14d961",
        },
    ),
    Patch(
        target="sglang.srt.distributed.parallel_state:GroupCoordinator",
        kind=Kind.USE,
        why="combines statistics of the vocabulary shards",
        fingerprints={
            "0.5.23": "sha256:025fea22ebafd34409a7843e147e70d174c27f13949300f3d556bb464cb227ac",
        },
    ),
    Patch(
        target="sglang.srt.distributed.parallel_state:get_tp_group",
        kind=Kind.USE,
        why="the ranks that share one model",
        fingerprints={
            "0.5.23": "sha256:50f914beec732ff7521851d9efa8cb97d59ec742bde8a2e25acef059c1cec679",
        },
    ),
    Patch(
        target="sglang.srt.sampling.sampling_params:TOP_K_ALL",
        kind=Kind.USE,
        why="tells that a request asked for no top_k",
        fingerprints={
            "0.5.23": "sha256:22560e8a17fe57e79a71f4be120e2ca9ac409cd95bb1ac6d5d9f4bbf17fafdfb",
        },
    ),
    Patch(
        target="sglang.srt.constrained.base_grammar_backend:BaseGrammarObject",
        kind=Kind.USE,
        why="decides what a constrained row may hold",
        fingerprints={
            "0.5.23": "sha256:398b3013053649f455722eb7013a235f621e864047f376d5fd0836060eacb8d6",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.unquant:UnquantizedEmbeddingMethod",
        kind=Kind.USE,
        why="tells a head that is one plain product",
        fingerprints={
            "0.5.23": "sha256:1e678d636c403dbcea03309944c43ead190f50ef63417575be7ee35b8b82e204",
        },
    ),
    Patch(
        target="sglang.srt.managers.io_struct:TokenizedGenerateReqInput",
        kind=Kind.USE,
        why="a request as it reaches the scheduler",
        fingerprints={
            "0.5.23": "sha256:497b6b6a0fa72277d16adcea95b51f8dc1ed7c5d31ed7012ccff5cdfb16d0afe",
        },
    ),
    Patch(
        target="sglang.srt.managers.schedule_batch:FINISH_ABORT",
        kind=Kind.USE,
        why="ends a request whose grammar cannot go on",
        fingerprints={
            "0.5.23": "sha256:795c332fe3a7cebf09771605743b4b01aafe449590be4330b90e8bbdbfcf1a89",
        },
    ),
    Patch(
        target="sglang.srt.sampling.sampling_params:REQUEST_REASONING_END_TOKEN_IDS_KEY",
        kind=Kind.USE,
        why="a key of the host's in custom_params",
        fingerprints={
            "0.5.23": "sha256:05f47b3cb3094f8ad59bec2daa9a4ce74e2b8efab96d004f0304df2fef3bef40",
        },
    ),
    Patch(
        target="sglang.srt.sampling.sampling_params:REQUEST_REASONING_IN_GRAMMAR_KEY",
        kind=Kind.USE,
        why="a key of the host's in custom_params",
        fingerprints={
            "0.5.23": "sha256:e237dbc0cf71bffb2717b4311e4556f2ab442708fc46dc2b271f17c6518c856f",
        },
    ),
)
