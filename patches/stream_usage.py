"""The usage of a stream's last chunk."""

from llada_sglang.compat.ledger import Kind, Patch

_WHY = "a stream's usage has to say how many forwards it took; the host's has no room for it"
_HOW = "adds three counters to the chunk that carries the usage of the whole answer"
_REMOVE_WHEN = "usage carries customized_info"

PATCHES = (
    Patch(
        target="sglang.srt.entrypoints.openai.serving_chat:OpenAIServingChat._generate_chat_stream",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.stream_usage:add_counters",
        why=_WHY,
        how=_HOW,
        remove_when=_REMOVE_WHEN,
        fingerprints={
            "0.5.23": "sha256:564bfc9d5f263b8c05108a9d01a13e9932535649d971d13f112bece2c7a07e5c",
        },
    ),
    Patch(
        target="sglang.srt.entrypoints.openai.serving_completions:"
        "OpenAIServingCompletion._generate_completion_stream",
        kind=Kind.AROUND,
        hook="llada_sglang.serving.stream_usage:add_counters",
        why=_WHY,
        how=_HOW,
        remove_when=_REMOVE_WHEN,
        fingerprints={
            "0.5.23": "sha256:fe1d7b5f8571fc1fa694dd824805d5f92ee816e53cd87896a2e9dff0234dfb73",
        },
    ),
)
