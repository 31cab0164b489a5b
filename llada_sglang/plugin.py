"""The two entry points SGLang calls, in every process, and nothing else."""

from __future__ import annotations

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

    return None if accelerator() else "llada_sglang.platform.cpu:CpuPlatform"


def _shorten_errors() -> None:
    """Print our errors in one line where the host's own command line is what runs.

    They say what to do; the host's traceback below them only hides it. A program that uses the
    host as a library keeps its tracebacks.
    """
    from llada_sglang.errors import LLaDAError

    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    file = str(getattr(main, "__file__", ""))
    if not (spec and spec.name == "sglang.launch_server") and not file.endswith("/sglang"):
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, LLaDAError):
            print(f"{kind.__name__}: {error}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    sys.excepthook = hook
