"""Jobs over many samples, while other threads use FiftyOne too."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.dataset import status

SAMPLES = 200
FRAMES = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of three frames of 32 x 32 with a red square."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.mp4"
    picture = np.full((32, 32, 3), 90, np.uint8)
    picture[8:20, 8:20] = (220, 30, 30)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def many(
    tiny: Path, fiftyone_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[fo.Dataset]:
    """200 videos with a prompt each."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    dataset = fo.Dataset()
    samples = []
    for number in range(SAMPLES):
        path = tmp_path / f"{number}.mp4"
        path.symlink_to(tiny)
        sample = fo.Sample(filepath=str(path))
        box = fo.Detection(bounding_box=[0.25, 0.25, 0.375, 0.375], index=1)
        sample.frames[1] = fo.Frame(prompts=fo.Detections(detections=[box]))
        samples.append(sample)
    dataset.add_samples(samples, progress=False)
    samples.clear()  # so that they are in memory only while something uses them
    yield dataset
    dataset.delete()


@pytest.fixture
def many_images(fiftyone_database: str, tmp_path: Path) -> Iterator[fo.Dataset]:
    """200 images with a region each."""
    cv2.imwrite(str(tmp_path / "image.png"), np.full((32, 32, 3), 120, np.uint8))
    dataset = fo.Dataset()
    samples = []
    for number in range(SAMPLES):
        path = tmp_path / f"{number}.png"
        path.symlink_to(tmp_path / "image.png")
        box = fo.Detection(bounding_box=[0.25, 0.25, 0.5, 0.5])
        regions = fo.Detections(detections=[box])
        samples.append(fo.Sample(filepath=str(path), regions=regions))
    dataset.add_samples(samples, progress=False)
    samples.clear()  # so that they are in memory only while something uses them
    yield dataset
    dataset.delete()


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Lets threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@contextmanager
def loading(dataset: fo.Dataset) -> Iterator[None]:
    """Loads and drops the samples of a dataset in two more threads."""
    stopped = threading.Event()

    def load() -> None:
        ids = dataset.values("id")
        while not stopped.is_set():
            for sample_id in ids:
                dataset[sample_id]

    threads = [threading.Thread(target=load, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def test_video_jobs(many) -> None:
    made = api.propagate_and_caption(
        many, propagator="flow", captioner="measured", progress=False
    )
    assert made.ok, made.failures[:3]
    assert (made.frames, made.captions) == (SAMPLES * FRAMES, SAMPLES)
    assert many.values("captions_status") == ["complete"] * SAMPLES
    again = api.caption(many, captioner="measured", overwrite=True, progress=False)
    assert again.ok and again.captions == SAMPLES


def test_image_jobs(many_images) -> None:
    made = api.caption_regions(
        many_images, "regions", captioner="measured", segmenter=None, progress=False
    )
    assert made.ok, made.failures[:3]
    assert made.captions == SAMPLES
    texts = many_images.values("regions.detections.caption", unwind=True)
    assert len(texts) == SAMPLES and all(texts)


def test_writes_while_other_threads_load_samples(many_images) -> None:
    samples = [many_images[sample_id] for sample_id in many_images.values("id")[::2]]
    with loading(many_images):
        for sample in samples * 3:
            status.write_status(sample, "regions", "partial")
    assert {sample["regions_status"] for sample in samples} == {"partial"}
