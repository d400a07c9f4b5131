"""What all tests share: where the golden numbers and the real clips are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; set {variable} to one")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers from the reference implementations, one folder a model."""
    return _folder("REGIONCAP_GOLDEN", SHARED / "golden")


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips with masks on every frame."""
    return _folder("REGIONCAP_CLIPS", SHARED / "clips")
