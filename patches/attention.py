"""What block-row attention is built on."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.layers.attention.torch_native_backend:TorchNativeAttnBackend",
        kind=Kind.SUBCLASS,
        why="the host pads the queries of a row to the length of its context",
        how="a block row costs block x context there; all else is left to the host",
        fingerprints={
            "0.5.23": "sha256:c681bb928dd710adb036b3c575047505349ead0b48883aa22e10532e548fd263",
        },
    ),
    Patch(
        target="sglang.srt.layers.radix_attention:AttentionType",
        kind=Kind.USE,
        why="tells non-causal layers",
        fingerprints={
            "0.5.23": "sha256:ee2a60f6c703c1e1fece8e923ea919caad6a782341b87c50841da5c0dc9ca6aa",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.memory_pool:KVWriteLoc",
        kind=Kind.USE,
        why="says where keys and values are written",
        fingerprints={
            "0.5.23": "sha256:e8a5d95ba308eb463af3daa9e213015ee9d00063db0349dbed5c8306152f6a8e",
        },
    ),
    Patch(
        target="sglang.srt.arg_groups.choices:ATTENTION_BACKEND_CHOICES",
        kind=Kind.EXTEND,
        why="a user may name the backend on the command line",
        how="`block_row_torch` becomes a valid --attention-backend",
        fingerprints={
            "0.5.23": "sha256:2e2c557d5c305ec217bc3fe9991d5742617847fc336ea51746b44cb0c327eab7",
        },
    ),
    Patch(
        target="sglang.srt.server_args:add_attention_backend_choices",
        kind=Kind.USE,
        why="the host's way to add a name to that list",
        fingerprints={
            "0.5.23": "sha256:6be2ecc9792b852fffb9cd57d8cf7566dd9b06148f6091ba4489dc0e8d1d2b82",
        },
    ),
    Patch(
        target="sglang.srt.layers.attention.attention_registry:ATTENTION_BACKENDS",
        kind=Kind.EXTEND,
        why="block rows need backends of their own behind the names that users and rules know",
        how="`flashinfer`, `fa3` and `triton` create ours for our algorithm, else the host's",
        fingerprints={
            "0.5.23": "sha256:776476858af0d387ee10d94651abd279b85dba9fb9ed74af1dd09fcd3815b408",
        },
    ),
    Patch(
        target="sglang.srt.layers.attention.flashinfer_backend:FlashInferAttnBackend",
        kind=Kind.SUBCLASS,
        why="the host plans by slots, for one row per request, and reads its plan back",
        how="block rows are planned by pages from lengths on the host, eagerly and for graphs",
        fingerprints={
            "0.5.23": "sha256:65c483fc6711f7fe8dfd576b459243727eb4b26d437ed52a11c8ddc24cf9ec40",
        },
    ),
    Patch(
        target="sglang.srt.layers.attention.flashattention_backend:FlashAttentionBackend",
        kind=Kind.SUBCLASS,
        why="the host has no graph metadata for DLLM_EXTEND",
        how="block rows have a page table and lengths of their own, eagerly and for graphs",
        fingerprints={
            "0.5.23": "sha256:e43238fe072fedf7d1f085f661e2403a2b8381cffb1b1879cfaf263b66423024",
        },
    ),
    Patch(
        target="sglang.srt.layers.attention.flashattention_backend:flash_attn_with_kvcache",
        kind=Kind.USE,
        why="the kernel of block rows on Hopper",
        fingerprints={
            "0.5.23": "sha256:0cf9b7afcc127b146b1955e7427a7647f5a0885fe372ad71c3ebdbfe0ca13c17",
        },
    ),
    Patch(
        target="sglang.srt.layers.attention.flashattention_backend:merge_state_v2_wrapper",
        kind=Kind.USE,
        why="merges a tile's shared prefix with the rest of its rows",
        fingerprints={
            "0.5.23": "sha256:832c97bba9a9ac4178ba7edae8944bd7331a3928aa9a7cce048c8b77f09ea0bd",
        },
    ),
    Patch(
        target="sglang.srt.layers.attention.triton_backend:TritonAttnBackend",
        kind=Kind.SUBCLASS,
        why="the host keeps one entry per request, and a forward has more rows than requests",
        how="block rows are planned from lengths on the host, eagerly and for graphs",
        fingerprints={
            "0.5.23": "sha256:f9d7e9b63c455e00e56357cbd22b591dca3c80f930a49a4f3a74f55013e61c6f",
        },
    ),
    Patch(
        target="sglang.kernels.ops.attention.extend_attention:extend_attention_fwd_unified",
        kind=Kind.USE,
        why="the kernel of block rows where there is no better",
        fingerprints={
            "0.5.23": "sha256:fb849a9f17abfe41819314dfe4c73d7f4a12ed003f495a139c8c52c4b7cfc618",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.layout.paged_view:paged_kv_view",
        kind=Kind.USE,
        why="a layer's cache by pages",
        fingerprints={
            "0.5.23": "sha256:6fdadb200736e911e644f09e40ebc261bf424a02fa5cd847b8611b217d30131f",
        },
    ),
    Patch(
        target="sglang.srt.utils.common:is_hopper_with_cuda_12_3",
        kind=Kind.USE,
        why="tells where FlashAttention 3 is the default",
        fingerprints={
            "0.5.23": "sha256:18783c2a7f7da9b6f6aa249da10bf173aa8fdebc8b8ef54f2dad3bb79430d58d",
        },
    ),
)
