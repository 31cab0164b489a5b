"""Block diffusion language models (LLaDA2) on SGLang, as an installed plugin.

Installing the package is all there is to do: SGLang finds it through its entry points
(`llada_sglang.plugin`). This module imports nothing but the standard library.
"""

from __future__ import annotations

__version__ = "0.1.0"
