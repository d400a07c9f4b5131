"""Jobs over many samples, while other threads use FiftyOne too."""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import fiftyone as fo
import numpy as np
import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.core.progress import ProgressEvent
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


@contextmanager
def videos_of(tiny: Path, folder: Path, number: int) -> Iterator[fo.Dataset]:
    """A dataset of so many videos, with a prompt each."""
    dataset = fo.Dataset()
    samples = []
    for name in range(number):
        path = folder / f"{name}.mp4"
        path.symlink_to(tiny)
        sample = fo.Sample(filepath=str(path))
        box = fo.Detection(bounding_box=[0.25, 0.25, 0.375, 0.375], index=1)
        sample.frames[1] = fo.Frame(prompts=fo.Detections(detections=[box]))
        samples.append(sample)
    dataset.add_samples(samples, progress=False)
    samples.clear()  # so that they are in memory only while something uses them
    try:
        yield dataset
    finally:
        dataset.delete()


@pytest.fixture
def many(
    tiny: Path, fiftyone_database: str, cache: Path, tmp_path: Path
) -> Iterator[fo.Dataset]:
    """200 videos with a prompt each."""
    with videos_of(tiny, tmp_path, SAMPLES) as dataset:
        yield dataset


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_job_while_other_threads_load_samples(many, tmp_path: Path) -> None:
    quiet = {"progress": False}
    with loading(many):
        for made in (
            api.propagate(many, propagator="flow", **quiet),
            api.caption(many, captioner="measured", **quiet),
            api.caption(many, captioner="measured", window=2, **quiet),
            api.move_masks(many, to="disk", output_dir=str(tmp_path / "disk"), **quiet),
            api.move_masks(many, to="inline", **quiet),
            api.propagate_from(
                many, propagator="flow", object_id=1, frame=2, direction="both", **quiet
            ),
            api.conform(many, **quiet),
            api.make_unique(many, captioner=None, **quiet),
            api.export(many, "jsonl", tmp_path / "out", media="none", **quiet),
            api.import_captions(
                many,
                "jsonl",
                tmp_path / "out",
                tracks="again",
                captions="said",
                **quiet,
            ),
            api.undo_captions(many, **quiet),
        ):
            assert getattr(made, "ok", True), made.failures[:3]
    assert many.count("said.detections") == 2 * SAMPLES  # one a window
    assert many.count("frames.again.detections") == SAMPLES * FRAMES
    assert many.values("captions_status") == ["complete"] * SAMPLES


def resident_bytes() -> int:
    """Returns the memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_videos_in_flat_memory(
    tiny: Path, fiftyone_database: str, cache: Path, tmp_path: Path
) -> None:
    number = 2000
    used: dict[int, int] = {}

    def listen(event: ProgressEvent) -> None:
        if event.captions % 500 == 0 and event.captions not in used:
            gc.collect()
            used[event.captions] = resident_bytes()

    with videos_of(tiny, tmp_path, number) as dataset:
        began = time.monotonic()
        made = api.propagate_and_caption(
            dataset, propagator="flow", captioner="measured", progress=listen
        )
        print(
            f"{time.monotonic() - began:.0f} s", {k: v >> 20 for k, v in used.items()}
        )
        assert made.ok, made.failures[:3]
        assert (made.frames, made.captions) == (number * FRAMES, number)
        assert dataset.values("captions_status") == ["complete"] * number
    assert used[number] - used[500] < 32 * 2**20


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
