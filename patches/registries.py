"""Registries of the host that we add an entry to."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.arg_groups.resolution_hooks:register_resolution_hook",
        kind=Kind.EXTEND,
        why="a LLaDA2 checkpoint has to start with no flag but its path",
        how="two resolution steps are wrapped: the host is prepared where the model becomes "
        "known, defaults are declared where the host declares its own",
        fingerprints={
            "0.5.23": "sha256:73099403db2ee0593016b97c6eb0476741ea941549a0377aef1c4361bde5069a",
        },
    ),
    Patch(
        target="sglang.srt.dllm.algorithm:algo_name_to_cls",
        kind=Kind.EXTEND,
        why="the host looks the decoding algorithm up by name",
        how="`BlockDiffusion` is added; a process without the plugin does not know it and stops",
        fingerprints={
            "0.5.23": "sha256:5b57c09562941c367b8e0ea12515965b7bd2fc7258efbab234a730210b77f636",
        },
    ),
    Patch(
        target="sglang.srt.function_call.parser_names:TOOL_CALL_PARSER_NAMES",
        kind=Kind.EXTEND,
        why="a user may name the parser on the command line",
        how="`llada2` becomes a valid --tool-call-parser",
        fingerprints={
            "0.5.23": "sha256:2479f2cd692cd8fd5343d8ea84f3c4da2f1c07735619654337115e9d322c9549",
        },
    ),
    Patch(
        target="sglang.srt.layers.attention.attention_registry:register_attention_backend",
        kind=Kind.EXTEND,
        why="the host's torch backend pads every query to the length of its context",
        how="`block_row_torch` is added, for CPUs",
        fingerprints={
            "0.5.23": "sha256:0c2f56f6b799236462b87d934970a72dff28ea2e1c44c61a1d66f8a485ebc77c",
        },
    ),
    Patch(
        target="sglang.srt.models.registry:ModelRegistry",
        kind=Kind.EXTEND,
        why="the host's model computes full logits for every position and skips unknown weights",
        how="our subclass is registered over `LLaDA2MoeModelLM`",
        fingerprints={
            "0.5.23": "sha256:cfafeb0372ccbd4b6508eaa1b17acfd9673e186ae0d1528eab76598315df1a0f",
        },
    ),
    Patch(
        target="sglang.srt.parser.reasoning_parser_names:REASONING_PARSER_NAMES",
        kind=Kind.EXTEND,
        why="a user may name the parser on the command line",
        how="`llada2` becomes a valid --reasoning-parser",
        fingerprints={
            "0.5.23": "sha256:f6960cf375248e30ade1ea8dc8f936f9a98d828632a84d5694f67552ec75f0cc",
        },
    ),
    Patch(
        target="sglang.srt.utils.hf_transformers.common:_CONFIG_REGISTRY",
        kind=Kind.EXTEND,
        why="without a local class the checkpoint's own configuration code would have to run",
        how="`llada2_moe` is mapped to our configuration class",
        fingerprints={
            "0.5.23": "sha256:d6afe49303b5ca84e2c6d4c4923785690690c90b10e916e5a6270995e4c9991e",
        },
    ),
)
