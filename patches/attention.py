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
)
