"""Typed errors. Every message names the thing, the value, the allowed range and the way out."""

from __future__ import annotations


class LLaDAError(Exception):
    """Base of every error this package raises on purpose."""


class HostMismatchError(LLaDAError):
    """The installed SGLang is not one this package was tested with."""


class CheckpointError(LLaDAError):
    """A checkpoint directory cannot be served: missing, truncated or of another architecture."""


class LaunchConfigError(LLaDAError):
    """A combination of server flags that cannot work with a LLaDA2 checkpoint."""


class DecodeParamError(LLaDAError, ValueError):
    """A per-request decoding parameter is unknown, of the wrong type or out of range."""


class RequestError(LLaDAError, ValueError):
    """A request asks for something unknown, contradictory or not served."""
