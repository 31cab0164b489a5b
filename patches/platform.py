"""What the CPU platform is built on."""

from llada_sglang.compat.ledger import Kind, Patch

PATCHES = (
    Patch(
        target="sglang.srt.platforms.cpu:CpuDeviceMixin",
        kind=Kind.SUBCLASS,
        why="the host's own CPU engine needs kernels built for AMX",
        how="device operations of our CPU platform, taken over as they are",
        fingerprints={
            "0.5.23": "sha256:9428150658e93b31b310f0c1ed74a57fc9c0fba9036b3e54c0ca56b5880f6bab",
        },
    ),
    Patch(
        target="sglang.srt.platforms.interface:SRTPlatform",
        kind=Kind.SUBCLASS,
        why="a host without an accelerator and without AMX has no platform to run on",
        how="every layer takes its torch-native path; active only where no accelerator is",
        fingerprints={
            "0.5.23": "sha256:0b2cafffb63aed1d9587ecd58b32eceb3a20c3e3897408ca54f68ae84bf95a99",
        },
    ),
    Patch(
        target="sglang.srt.platforms.interface:PlatformCapabilities",
        kind=Kind.USE,
        why="says that there is no Triton and no graph capture",
        fingerprints={
            "0.5.23": "sha256:dd78b2982ae17322ab701b1319df040282face1a4c2890295fad71865875d194",
        },
    ),
    Patch(
        target="sglang.srt.platforms.device_mixin:PlatformEnum",
        kind=Kind.USE,
        why="marks the platform as an out-of-tree one",
        fingerprints={
            "0.5.23": "sha256:d0ed4a3a6bf505d3ff340960ff141f07b9c013df976e1c298b4bcc9c534f26b7",
        },
    ),
    Patch(
        target="sglang.srt.platforms:_resolve_platform",
        kind=Kind.USE,
        why="calls our entry point and builds the class it names",
        fingerprints={
            "0.5.23": "sha256:566114e90520151322ef2189e79d40e6dc2378485ae5ca0251397d1ab2aeae40",
        },
    ),
    Patch(
        target="sglang.srt.utils.common:get_device",
        kind=Kind.USE,
        why="gives a torch.device where the argument resolution wants text, so we declare `cpu`",
        fingerprints={
            "0.5.23": "sha256:23fddad5278a641f235938bd9aab127d020845b66e7dbf775b5f1dcc34b22c26",
        },
    ),
    Patch(
        target="sglang.srt.distributed.bootstrap:_is_cpu_arm64",
        kind=Kind.SET,
        why="on arm64 the host binds its threads through an operator that need not be installed",
        how="cleared where the operator is missing: torch keeps its own threads",
        remove_when="the host asks for the operator before it calls it",
        fingerprints={
            "0.5.23": "sha256:b9764807c4450a1b1b56064937fbba761af090eea8ec473de5f0c965c04ccba2",
        },
    ),
    Patch(
        target="sglang.srt.distributed.bootstrap:_init_cpu_threads_env",
        kind=Kind.USE,
        why="the only reader of that flag that matters here",
        fingerprints={
            "0.5.23": "sha256:71a354c79d6441bd1dd69aa7e0c5995fbfa9811662ee15cb660035b61f94748d",
        },
    ),
)
