"""The two entry points SGLang calls, in every process, and nothing else."""

from __future__ import annotations

import multiprocessing
import sys
from types import TracebackType


def register() -> None:
    """Entry point of group `sglang.srt.plugins`.

    In the launching process only the argument resolution is hooked, as the model is not known yet;
    a LLaDA2 model then makes it install the rest (`serving.defaults`). In a scheduler process of
    such a model everything is installed here; its detokenizer only has to know the configuration
    class. The processes of any other model are left as they are.

    The host logs an exception raised here and goes on without us, so a failure has to leave as
    SystemExit, which ends the process and with it the launch.
    """
    try:
        from llada_sglang import compat, env
        from llada_sglang.serving import defaults

        _shorten_errors()
        defaults.register()
        if env.is_active():
            if "sglang.srt.managers.scheduler" in sys.modules:
                compat.install(apply=False)
            else:
                compat.install_config()
    except Exception as error:
        raise SystemExit(f"llada_sglang: {type(error).__name__}: {error}") from error


def platform() -> str | None:
    """Entry point of group `sglang.srt.platforms`: our CPU platform, or None beside an accelerator.

    Returns the class as `module:name`, which the host resolves (`sglang.srt.platforms`).
    """
    from llada_sglang.platform.detect import accelerator

    if accelerator():
        return None
    _leave_flashinfer_out()
    return "llada_sglang.platform.cpu:CpuPlatform"


def _leave_flashinfer_out() -> None:
    """Let the host's processes do without FlashInfer, which serves GPUs only.

    The host imports it for fp4 quantisation wherever it is installed (layers.quantization.
    fp4_utils), CUTLASS and all, and goes on without it where it is not. It is a tenth of what each
    of its processes imports, a quarter where no bytecode is kept. A program that uses the host as a
    library may want it.
    """
    if _is_hosts_command() or multiprocessing.parent_process() is not None:
        sys.modules.setdefault("flashinfer", None)  # type: ignore[arg-type]


def _is_hosts_command() -> bool:
    """Whether `python -m sglang.launch_server` or `sglang` is what runs."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    file = str(getattr(main, "__file__", ""))
    return (spec is not None and spec.name == "sglang.launch_server") or file.endswith("/sglang")


def _shorten_errors() -> None:
    """Print our errors in one line where the host's own command line is what runs.

    They say what to do; the host's traceback below them only hides it. A program that uses the
    host as a library keeps its tracebacks.
    """
    from llada_sglang.errors import LLaDAError

    if not _is_hosts_command():
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, LLaDAError):
            print(f"{kind.__name__}: {error}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    sys.excepthook = hook
