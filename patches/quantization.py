"""Rules of quantised checkpoints that `llada_sglang.quantization` repeats over names."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.layers.quantization.fp8:Fp8Config",
        kind=Kind.USE,
        why="an fp8 checkpoint's settings are read as it reads them",
        fingerprints={
            "0.5.23": "sha256:7e528e187e5e075b878991812f4c91e22feac7836a1eab8f75a4b222946d4b44",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.utils:is_layer_skipped",
        kind=Kind.USE,
        why="which layers an fp8 checkpoint keeps is decided by its rule",
        fingerprints={
            "0.5.23": "sha256:5e9f9154fff694af5725755988e351ec64d712b4e7c48f40f25339b0edf6d3b4",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.awq.awq:AWQMarlinConfig",
        kind=Kind.USE,
        why="the settings of an AWQ checkpoint are held to what it has kernels for",
        fingerprints={
            "0.5.23": "sha256:133d4041f27b0166903eea2f1e7a8c7a5cc77ba38565be8d48b5332c8e86088b",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.awq.awq:is_layer_skipped_awq",
        kind=Kind.USE,
        why="which layers an AWQ checkpoint keeps is decided by its rule",
        fingerprints={
            "0.5.23": "sha256:8eee43ac1524e1e25e85b448cbb4613985ff66486a98dc400bc4234f3235bb32",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.gptq.gptq:GPTQMarlinConfig",
        kind=Kind.USE,
        why="the settings of a GPTQ checkpoint are held to what it has kernels for",
        fingerprints={
            "0.5.23": "sha256:9ef68a60a91869dd83f29d4c6dad0c1867dbdb0616c2d9b7c91d94e373e9e055",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.gptq.schemes.gptq_moe:"
        "GPTQMarlinMoEScheme.create_weights",
        kind=Kind.SET,
        why="it makes the experts' scales float16, which their kernel refuses beside bfloat16",
        how="our model holds them in its own dtype before they are loaded",
        upstream="sgl-project/sglang#22121",
        remove_when="the host makes them in the model's dtype",
        fingerprints={
            "0.5.23": "sha256:774c121a9b826d0a76e4612c1630b11f80ef8bd3ae65e9819fe33a0d2a8ce06b",
        },
    ),
    Patch(
        target="sglang.srt.hardware_backend.gpu.quantization.awq_kernels:AWQMoEKernel",
        kind=Kind.USE,
        why="shares of experts whose scales it puts in a wrong order are refused",
        fingerprints={
            "0.5.23": "sha256:69b7dbeef5c246852888278361a1eed791c6d68cff4bf1bd4184f5ca3949c463",
        },
    ),
    Patch(
        target="sglang.srt.hardware_backend.gpu.quantization.gptq_kernels:GPTQMarlinMoEKernel",
        kind=Kind.USE,
        why="shares of experts whose scales it puts in a wrong order are refused",
        fingerprints={
            "0.5.23": "sha256:f13365e5c816adfd13c73885da33c9ff7e3c7599ef776acdd60d835f0e193888",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.compressed_tensors.schemes.compressed_tensors_wNa16_moe:"
        "CompressedTensorsWNA16MoE.create_weights",
        kind=Kind.USE,
        why="experts' zero points, which do not fit what it makes for them, are refused",
        fingerprints={
            "0.5.23": "sha256:24b44862d17452f76c0edb499b07e7f2a94df693be125a995df732d059132ae8",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.utils:get_dynamic_override",
        kind=Kind.USE,
        why="which layers a GPTQ checkpoint keeps is decided by its rule",
        fingerprints={
            "0.5.23": "sha256:dd99a2ec636577a2f11317ac55b09921205ac25581e67476c1969db70f8cf843",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.compressed_tensors.utils:should_ignore_layer",
        kind=Kind.USE,
        why="which layers a compressed-tensors checkpoint keeps is decided by its rule",
        fingerprints={
            "0.5.23": "sha256:447c78f094d5715dd33a533bd10a52ea52bf9a62618cbd5af231de5f1cf5d4a6",
        },
    ),
    Patch(
        target="sglang.srt.layers.quantization.marlin_utils:MARLIN_SUPPORTED_GROUP_SIZES",
        kind=Kind.USE,
        why="the group sizes of int4 weights that have kernels",
        fingerprints={
            "0.5.23": "sha256:391ae2417bd88c2a9e3188d9c53d9493ffb204fa2d8407d03ce602ebee2b8759",
        },
    ),
)
