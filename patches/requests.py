"""What a client sends, from the raw body to the host's own request."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.admission:admit",
        why="fields that no later step reads would be ignored in silence; the OpenAI streams drop "
        "what they do not know of meta_info",
        how="refuses such a field by name, takes the published names of parameters, and keeps the "
        "counters of a stream beside its request",
        remove_when="the host lets a model class say which fields it reads",
        fingerprints={
            "0.5.23": "sha256:21bc72224c6ac4e47663a8c3b2c42797a2b4789520a8fddb3e5fc68038b225c7",
        },
    ),
    Patch(
        target="sglang.srt.entrypoints.http_server:ORJSONRequest.json",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.http:read_json",
        why="the host drops keys of a body that it does not know, before anything else sees them",
        how="takes the body LLaDA2.0 is published with, and refuses keys that nobody reads",
        remove_when="the host refuses unknown keys and lets a plugin extend its bodies",
        fingerprints={
            "0.5.23": "sha256:e2c5d0ed98fbad90de8ee5801917a230679f77716430e844148e28120f8fce6f",
        },
    ),
    Patch(
        target="sglang.srt.configs.model_config:ModelConfig.get_default_sampling_params",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.temperature:chat_defaults",
        why="a chat that names no temperature is sampled at 1; LLaDA2 is published with 0",
        how="adds temperature 0 where the checkpoint's generation_config.json has none",
        remove_when="LLaDA2 checkpoints carry their temperature",
        fingerprints={
            "0.5.23": "sha256:19701d1ed456ec5d6ad2bfe3e68e74a7db06759eb7cb9cdf1ae287073a0af04d",
        },
    ),
    Patch(
        target="sglang.srt.entrypoints.openai.serving_completions:"
        "OpenAIServingCompletion._build_sampling_params",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.temperature:completion_params",
        why="a completion that names no temperature is sampled at 1, whatever the server prefers",
        how="leaves the temperature open where the request does",
        remove_when="CompletionRequest.temperature has no default of its own",
        fingerprints={
            "0.5.23": "sha256:4a7df024dbfdae29d8d11834e59ef0ca3a48f9e8b4c6446f5da40aec2db60451",
        },
    ),
    Patch(
        target="sglang.srt.managers.tokenizer_manager_score_mixin:"
        "TokenizerManagerScoreMixin.score_request",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.admission:refuse_scores",
        why="a score is the probability of a token after a prefix, which a block does not have",
        how="refuses it with the reason",
        remove_when="the host asks the model class whether it scores",
        fingerprints={
            "0.5.23": "sha256:0a91a54aaa46897eccb7182b6eca65eb9d483162c2ea1d5d502e75ee2657d986",
        },
    ),
    Patch(
        target="sglang.srt.managers.tokenizer_control_mixin:TokenizerControlMixin.open_session",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.admission:refuse_sessions",
        why="a session joins prompt and output of its turns at any token, a block at none",
        how="refuses it with the reason",
        remove_when="sessions join turns at whole pages",
        fingerprints={
            "0.5.23": "sha256:d3879befedfb3a3fba01aeb3fa88946db00af039c3b7f1aad4d968d22634c61a",
        },
    ),
    Patch(
        target="sglang.srt.parser.reasoning_parser:ReasoningParser",
        kind=Kind.EXTEND,
        why="its parsers of `<think>` take an answer without thinking for reasoning",
        how="`llada2` is added, which believes the tag only where the text opens it",
        fingerprints={
            "0.5.23": "sha256:551de7f2cf3987a795389815fbbd610543ffe05d3dfbdd559eef18c535549dfd",
        },
    ),
    Patch(
        target="sglang.srt.parser.reasoning_parser:Qwen3Detector",
        kind=Kind.SUBCLASS,
        why="reads reasoning and the tool calls that interrupt it",
        how="`llada2`: never assumes that a text begins inside its reasoning",
        fingerprints={
            "0.5.23": "sha256:4b9026d3894c4a4c163de63d24e7cbe8628d86bc9eea4bcccbbb5ea0775f8b52",
        },
    ),
    Patch(
        target="sglang.srt.function_call.function_call_parser:FunctionCallParser",
        kind=Kind.EXTEND,
        why="its parsers of a stream take one step per chunk, and a chunk is a block",
        how="`llada2` is added, which reads a chunk to its end",
        fingerprints={
            "0.5.23": "sha256:ebdf2b31cf8e83f6ce77e31b494d8354f306768c22f8cdc3e50a0e08b1aa3b3e",
        },
    ),
    Patch(
        target="sglang.srt.function_call.qwen25_detector:Qwen25Detector",
        kind=Kind.SUBCLASS,
        why="of a chunk that holds a whole tool call it loses the arguments and the text before",
        how="`llada2`: parses on until nothing more is complete",
        fingerprints={
            "0.5.23": "sha256:1bebba39bcd776f994b3940143ca581984b63ed3dc167fe0625409ce57dd670a",
        },
    ),
    Patch(
        target="sglang.srt.function_call.core_types:StreamingParseResult",
        kind=Kind.USE,
        why="what a tool-call parser returns of a chunk",
        fingerprints={
            "0.5.23": "sha256:1d14da753fa0a81677464c2ccf3cc5944d4932b2ba03b1137c46af2c1438936a",
        },
    ),
    Patch(
        target="sglang.srt.function_call.core_types:StructureInfo",
        kind=Kind.USE,
        why="says how a tool call begins and ends, for its grammar",
        fingerprints={
            "0.5.23": "sha256:f142fb36c80dec234f1cf7f86f344d085095f1a2b561665230c64992de2515d1",
        },
    ),
    Patch(
        target="sglang.srt.managers.io_struct:GenerateReqInput",
        kind=Kind.USE,
        why="every way in comes down to it; its fields are honoured or refused one by one",
        fingerprints={
            "0.5.23": "sha256:855c1ed70061fc39ccbad4f22e61bcbd7606cc9e453a7e5d5655cb3b94083ad0",
        },
    ),
    Patch(
        target="sglang.srt.managers.io_struct:EmbeddingReqInput",
        kind=Kind.USE,
        why="tells a request for embeddings",
        fingerprints={
            "0.5.23": "sha256:ef285f9bb0634789608106ec641855d6ae9419eb1bced29c9dc4d879ede689c2",
        },
    ),
    Patch(
        target="sglang.srt.sampling.sampling_params:SamplingParams",
        kind=Kind.USE,
        why="its fields are the sampling parameters there are",
        fingerprints={
            "0.5.23": "sha256:1d0c9893d15ecaa68157b2512c846deec1983d949625ffadb3d6f8d972c70e09",
        },
    ),
    Patch(
        target="sglang.srt.entrypoints.openai.protocol:CompletionRequest",
        kind=Kind.USE,
        why="its fields are the keys a completion may have",
        fingerprints={
            "0.5.23": "sha256:1895974b4d5fa8e087bd89c9515c66bbf304b3aa4da748cd2b38449c43580e06",
        },
    ),
    Patch(
        target="sglang.srt.entrypoints.openai.protocol:ChatCompletionRequest",
        kind=Kind.USE,
        why="its fields are the keys a chat completion may have",
        fingerprints={
            "0.5.23": "sha256:5d5990ec978280f6a5a1a172972fe91f5d395316372ee895a2ac42ca24ca7f9f",
        },
    ),
    Patch(
        target="sglang.srt.entrypoints.openai.protocol:ResponsesRequest",
        kind=Kind.USE,
        why="its fields are the keys a response may have",
        fingerprints={
            "0.5.23": "sha256:7d8b3f93b2f4a1f42afa4f9605a4d2bd5fc5d341d3b47d79b45e155101e588ae",
        },
    ),
)
