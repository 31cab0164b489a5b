"""The host's diffusion configuration."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.dllm.config:DllmConfig.from_server_args",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.dllm_config:checkpoint_config",
        why="mask id and block size are hard-coded per architecture",
        how="the host's object is returned with both as the checkpoint has them",
        remove_when="the host reads both from config.json",
        fingerprints={
            "0.5.23": "sha256:d5dce49273b1a994e46db13f40faf06f76d81530492c03fd23489f418466598a",
        },
    ),
)
