"""Fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def nano() -> Path:
    """The directory of the trained checkpoint that is part of the package."""
    return REPOSITORY / "llada_sglang" / "nano" / "checkpoint"
