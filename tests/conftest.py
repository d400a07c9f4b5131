"""What all tests share: golden numbers, real clips, and a real database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

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


@pytest.fixture(scope="session")
def fiftyone_database() -> Iterator[str]:
    """The name of a database that only this test run uses; dropped at its end."""
    from fiftyone_regioncap.database import ensure

    ensure()
    import fiftyone as fo
    import fiftyone.core.odm as foo

    name = f"regioncap_tests_{uuid4().hex[:8]}"
    # The variable is for the processes that tests start.
    os.environ["FIFTYONE_DATABASE_NAME"] = name
    fo.config.database_name = name
    yield name
    foo.drop_database()
