"""Configuration of LLaDA2 checkpoints, so that no checkpoint's own Python is ever run."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class LLaDA2MoeConfig(PretrainedConfig):
    """The keys of a LLaDA2 `config.json`; the defaults are those of LLaDA2.0-mini.

    Keys that are not listed are kept as attributes. `mask_token_id` and `block_size` are here
    for tools that expect them; serving reads them with `llada_sglang.checkpoint.read_family`,
    which also asks the tokenizer before it falls back on these values.

    Declared at module level because the host pickles it to its scheduler processes.
    """

    model_type = "llada2_moe"

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int | None = 128
    hidden_act: str = "silu"
    use_qkv_bias: bool = False
    use_qk_norm: bool = True
    use_bias: bool = False
    use_rmsnorm: bool = True
    rms_norm_eps: float = 1e-6
    norm_head: bool = False
    tie_word_embeddings: bool = False
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    output_dropout: float = 0.0
    initializer_range: float = 0.02
    max_position_embeddings: int = 32768
    rope_theta: float = 600000.0
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float = 0.5
    use_cache: bool = True
    num_experts: int = 256
    num_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    moe_intermediate_size: int = 512
    moe_shared_expert_intermediate_size: int | None = None
    first_k_dense_replace: int = 1
    routed_scaling_factor: float = 2.5
    score_function: str = "sigmoid"
    norm_topk_prob: bool = True
    moe_router_enable_expert_bias: bool = True
    router_dtype: str | None = "fp32"
    expert_capacity: int | None = None
    block_size: int = 32
    mask_token_id: int = 156895
    pad_token_id: int | None = 156892
    eos_token_id: int | list[int] | None = 156892
    bos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.moe_shared_expert_intermediate_size is None:
            self.moe_shared_expert_intermediate_size = self.moe_intermediate_size
        super().__post_init__(**kwargs)
