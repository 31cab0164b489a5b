"""What the model class is built on."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.models.llada2:LLaDA2MoeModelLM",
        kind=Kind.SUBCLASS,
        why="the host computes logits of every position and loads unknown weights in silence",
        how="hidden states and logits apart; weights unknown or missing are errors",
        fingerprints={
            "0.5.23": "sha256:5226cabacedb8c51d6758ea0ceaaf7fda9a39ef9d4cb560e842158bfc7721d46",
        },
    ),
    Patch(
        target="sglang.srt.models.llada2:LLaDA2MoeModel",
        kind=Kind.SUBCLASS,
        why="on a CPU the host compiles small functions at the first request, for seconds",
        how="its forward runs eagerly there",
        fingerprints={
            "0.5.23": "sha256:0abf38557c96cc15f04122df9e3d7b95548731803e65e4b1dbeee70cd21f335e",
        },
    ),
    Patch(
        target="sglang.srt.models.llada2:LLaDA2MoeAttention",
        kind=Kind.SUBCLASS,
        why="with a partial rotary the host takes four launches from projection to KV pool",
        how="QK-norm, rotary and KV store are one kernel on CUDA, in forwards of block rows",
        fingerprints={
            "0.5.23": "sha256:ac84c2e86488426a834a241cece2279817b4645460ead23db8a34e8fc96883bd",
        },
    ),
    Patch(
        target="sglang.srt.layers.rotary_embedding.base:RotaryEmbedding",
        kind=Kind.USE,
        why="the rotation that the kernel does as well",
        fingerprints={
            "0.5.23": "sha256:903dbb9fc0bddb1d8d540a11cda557d5c93ee5c555c0d931e7d22da57ca7f477",
        },
    ),
    Patch(
        target="sglang.srt.mem_cache.memory_pool:MHATokenToKVPool",
        kind=Kind.USE,
        why="the layout of the pool that the kernel writes",
        fingerprints={
            "0.5.23": "sha256:96ac18e3a1a530b5d353b406862ec3ffdddc4c0137e4f2a5c52cefcf60cdfd42",
        },
    ),
    Patch(
        target="sglang.srt.model_executor.forward_context:get_attn_backend",
        kind=Kind.USE,
        why="whether keys and values are read from the pool, and the pool itself",
        fingerprints={
            "0.5.23": "sha256:e44b17470caf05bff3d2c8dfaebfa9f5407ca6be10626ad9f68c43a788dec66b",
        },
    ),
    Patch(
        target="sglang.srt.models.llada2:LLaDA2MoeSparseMoeBlock",
        kind=Kind.SUBCLASS,
        why="on a CPU the host drops routed_scaling_factor and compiles the router; on CUDA its "
        "block routing follows ids that were never written where logits are NaN",
        how="in torch, on a CPU or in float32, routes eagerly and applies the factor once; one "
        "kernel on CUDA",
        fingerprints={
            "0.5.23": "sha256:6766f3bcc6d86023a8f59e23e78c6c5591765b2f7ce92dda1934a187565148c1",
        },
    ),
    Patch(
        target="sglang.srt.models.llada2:_prepare_llada2_language_weights",
        kind=Kind.USE,
        why="stacks the experts of a checkpoint; its names are compared with the model",
        fingerprints={
            "0.5.23": "sha256:d9438a4ecc1a5b7fc156bd0ed93dac0df13ec7a07a66f8e8d56ce77a24d3d8dd",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.unquant:UnquantizedFusedMoEMethod",
        kind=Kind.SUBCLASS,
        why="the host loops over all experts on a CPU, and multiplies float32 as float16 on a GPU",
        how="tokens are sorted by expert there, one product per expert in use",
        fingerprints={
            "0.5.23": "sha256:57876b15e748f89af4c66c10f968d9e91bd23a258a59ce43e9e19fecce268a67",
        },
    ),
    Patch(
        target="sglang.kernels.fused_op:BaseFusedOp",
        kind=Kind.USE,
        why="in float32 on a GPU each is pinned to its path in torch; some kernels know no float32",
        fingerprints={
            "0.5.23": "sha256:15914ed4f8e40211b196bde0720559639a0ddd87a6cb3ce2ef78839e25577de4",
        },
    ),
    Patch(
        target="sglang.srt.layers.moe.token_dispatcher:StandardCombineInput",
        kind=Kind.USE,
        why="carries the output of the experts",
        fingerprints={
            "0.5.23": "sha256:7055b971f5268bbe18fb699f3dab53c3a2c5b79a81e55be673b2e82b23da0f99",
        },
    ),
    Patch(
        target="sglang.srt.layers.moe.topk:StandardTopKOutput",
        kind=Kind.USE,
        why="carries the routing to the experts",
        fingerprints={
            "0.5.23": "sha256:7f897c1e37efaa9ca9c1ae628e4a5837b7f152ec4dff6b2fb9f3647b52fde6b3",
        },
    ),
    Patch(
        target="sglang.srt.layers.moe.topk:capture_routed_experts_if_allowed",
        kind=Kind.USE,
        why="reports the routing where a client asked for it",
        fingerprints={
            "0.5.23": "sha256:d81816f952045e65f4eea543815d5a63e5acff00c34364956c089dc48965c298",
        },
    ),
    Patch(
        target="sglang.srt.eplb.expert_distribution:get_global_expert_distribution_recorder",
        kind=Kind.USE,
        why="counts the routing for the load balancer of experts",
        fingerprints={
            "0.5.23": "sha256:87635cf6a9e029c43698c75b079c00b386167948dd2513aae9078eaee31977fa",
        },
    ),
    Patch(
        target="sglang.srt.layers.logits_processor:LogitsProcessorOutput",
        kind=Kind.USE,
        why="carries hidden states out of a forward",
        fingerprints={
            "0.5.23": "sha256:d92c6ae04200dcb1c8429f1b8b3251a365b781ded61c93768b99097da203096c",
        },
    ),
    Patch(
        target="sglang.srt.layers.logits_processor:LogitsProcessor._compute_lm_head",
        kind=Kind.USE,
        why="the head of one rank, quantised or not",
        fingerprints={
            "0.5.23": "sha256:edee85644b6ea8a99d4c6c0084e72114bdd8e5512387c9157e0a72dfd8662379",
        },
    ),
    Patch(
        target="sglang.srt.runtime_context:get_device",
        kind=Kind.USE,
        why="tells the model class its device",
        fingerprints={
            "0.5.23": "sha256:5e0a9f1b2db8ee527515fa35e8822435acd1e6e9fe07b04acbc6c876d231aa25",
        },
    ),
)
