"""What has to be right before a server is started, so that it need not fail half a minute later."""

from __future__ import annotations

from pathlib import Path

import llada_sglang
from llada_sglang import env
from llada_sglang.checkpoint import CheckpointFamily
from llada_sglang.cli.server import ServerError
from llada_sglang.validation import validate

PLUGIN = "llada_sglang"
NANO = Path(llada_sglang.__file__).parent / "nano" / "checkpoint"


def prepare(model: str | None) -> CheckpointFamily:
    """Check the checkpoint (None: the one of this package) and that the host may load our plugin.

    Raises CheckpointError or ServerError with the way out.
    """
    family = validate(model if model is not None else NANO)
    if reason := plugin_left_out():
        raise ServerError(reason)
    return family


def plugin_left_out() -> str | None:
    """Why the host would leave our plugin out, by the environment, and the way out; else None."""
    selected = env.selected_plugins()
    if selected is not None and PLUGIN not in selected:
        return (
            f"SGLANG_PLUGINS={','.join(selected)} leaves {PLUGIN} out, and with it LLaDA2. "
            f"Unset it, or add {PLUGIN} to it."
        )
    platform = env.selected_platform()
    if platform is not None and platform != PLUGIN:
        return (
            f"SGLANG_PLATFORM={platform} makes SGLang leave every other platform's package out, "
            f"{PLUGIN} among them. Unset it, or set it to {PLUGIN}."
        )
    return None
