"""What all tests share: golden numbers, real clips, and a real database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.support import SHARED

# However busy the machine is, an example that takes long is no fault.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

pytest_plugins = ["tests.support.propagation", "tests.support.sam2"]

if TYPE_CHECKING:
    import fiftyone as fo

    from fiftyone_regioncap.dataset.captions import CaptionRecord


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
def samples() -> Path:
    """The folder of small files in the formats of benchmarks, with expected scores."""
    return _folder("REGIONCAP_SAMPLES", SHARED / "samples")


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips with masks on every frame."""
    return _folder("REGIONCAP_CLIPS", SHARED / "clips")


@pytest.fixture(scope="session")
def fiftyone_database() -> Iterator[str]:
    """The name of a database that only this test run uses; dropped at its end."""
    from fiftyone_regioncap.system.database import ensure

    ensure()
    import fiftyone as fo
    import fiftyone.core.odm as foo

    name = f"regioncap_tests_{uuid4().hex[:8]}"
    # The variable is for the processes that tests start.
    os.environ["FIFTYONE_DATABASE_NAME"] = name
    fo.config.database_name = name
    yield name
    foo.drop_database()


def _scene(frame: int) -> np.ndarray:
    """A red disc that moves right and a blue brick that stands, on a textured wall."""
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.integers(60, 160, (18, 24, 3), dtype=np.uint8), (96, 72))
    cv2.circle(wall, (19 + frame, 32), 11, (220, 30, 30), -1)
    wall[40:56, 60:76] = (30, 30, 220)
    return wall


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two videos of 24 frames of 72 x 96: a disc that moves and a brick that stands."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / name for name in ("one.mp4", "two.mp4")]
    for path in paths:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=12)
            stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
            for frame in range(24):
                picture = av.VideoFrame.from_ndarray(_scene(frame), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    return paths


@pytest.fixture(scope="session")
def contents() -> Callable[[fo.Dataset], dict[str, Any]]:
    """Gives everything that jobs write, by video, ids and instances included."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k != "_dataset_id"}
        return [plain(v) for v in value] if isinstance(value, list) else value

    def label(document: Any, field: str) -> Any:
        value = document[field] if document.has_field(field) else None
        return None if value is None else plain(value.to_dict())

    def read(dataset: fo.Dataset) -> dict[str, Any]:
        dataset.reload()
        return {
            Path(sample.filepath).name: {
                "frames": {
                    number: found
                    for number, frame in sample.frames.items()
                    if (found := label(frame, "tracks")) is not None
                },
                "captions": label(sample, "captions"),
                "status": [
                    sample[field] if sample.has_field(field) else None
                    for field in ("tracks_status", "captions_status")
                ],
            }
            for sample in dataset
        }

    return read


@pytest.fixture(scope="session", autouse=True)
def one_meteor() -> Iterator[None]:
    """Starts METEOR's program, which takes seconds, once for all tests that use it."""
    from fiftyone_regioncap.evaluation.captions import shared_meteor

    with shared_meteor():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Patch-ioner of random weights."""
    from tests.support.patchioner import write_random_checkpoint

    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def seen(checkpoint: Path) -> Callable[..., CaptionRecord]:
    """Makes captions of regions that look as a text says, more or less."""
    from fiftyone_regioncap.captioning.patchioner.text_encoder import PatchionerTexts
    from fiftyone_regioncap.dataset.captions import CaptionRecord
    from fiftyone_regioncap.dataset.embeddings import RegionEmbedding

    encoder = PatchionerTexts.from_pretrained(checkpoint, "cpu")

    def make(
        index: int, caption: str, looks: str | None, noise: float = 0.1
    ) -> CaptionRecord:
        embedding = None
        if looks is not None:
            (vector,) = encoder.embed_text([looks])
            rng = np.random.default_rng(index)
            vector = vector + noise * rng.standard_normal(len(vector)) / 8
            embedding = RegionEmbedding.of(
                vector / np.linalg.norm(vector), encoder.space
            )
        return CaptionRecord(
            index, (0, 9), label="thing", caption=caption, embedding=embedding
        )

    return make
