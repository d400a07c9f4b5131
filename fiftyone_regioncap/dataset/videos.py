"""Makes datasets with prompts from files and boxes of the shell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import fiftyone as fo

from fiftyone_regioncap.core.errors import Cancelled, RegionCapError
from fiftyone_regioncap.core.options import is_text
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset.fields import caption_fields, track_fields
from fiftyone_regioncap.dataset.prompts import same_prompts, write_prompts
from fiftyone_regioncap.video.reader import read_metadata

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"}
)

PROMPTS = "prompts"
"""The frame-level field for prompts given as boxes or masks."""

POINTS = "prompt_points"
"""The frame-level field for prompts given as points."""


def find_videos(path: str | os.PathLike[str]) -> list[Path]:
    """Returns the video itself, or the videos directly inside a folder, by name.

    Raises:
        RegionCapError: When there is none.
    """
    path = Path(path)
    if not is_text(str(path)):
        raise RegionCapError(
            f"the name {str(path)!r} is not in UTF-8, as FiftyOne needs it; rename it"
        )
    if path.is_file():
        return [path.resolve()]
    if not path.is_dir():  # a pipe or a device is neither
        raise RegionCapError(
            f"{path} is neither a file nor a folder; give a video or a folder of videos"
        )
    videos = sorted(
        file.resolve()
        for file in path.iterdir()
        if file.suffix.lower() in VIDEO_SUFFIXES
        and file.is_file()
        and is_text(file.name)
    )
    if not videos:
        raise RegionCapError(
            f"{path} holds no videos ({', '.join(sorted(VIDEO_SUFFIXES))})"
        )
    return videos


def open_dataset(name: str) -> fo.Dataset:
    """Loads a dataset.

    Raises:
        RegionCapError: When there is none of that name.
    """
    if not (is_text(name) and fo.dataset_exists(name)):
        known = ", ".join(fo.list_datasets()[:20]) or "none yet"
        raise RegionCapError(f"there is no dataset {name!r}; there are: {known}")
    return fo.load_dataset(name)


def has_others(name: str, videos: Sequence[Path], prompts: Sequence[Prompt]) -> bool:
    """Returns whether one of the videos is in a dataset already, with other prompts.

    Args:
        name: Name of the dataset, which need not exist.
        videos: Absolute paths of the videos.
        prompts: Prompts for each of the videos.

    Raises:
        PromptError: When a prompt doesn't fit a video.
        RegionCapError: When points are mixed with boxes.
    """
    if not fo.dataset_exists(name):
        return False
    dataset, field = fo.load_dataset(name), _field_of(prompts)
    known = dataset.match(fo.ViewField("filepath").is_in([str(v) for v in videos]))
    return any(not same_prompts(sample, field, prompts) for sample in known)


def _field_of(prompts: Sequence[Prompt]) -> str:
    pointed = {prompt.points is not None for prompt in prompts}
    if len(pointed) > 1:
        raise RegionCapError("give all prompts as boxes, or all as points")
    return POINTS if pointed == {True} else PROMPTS


def add_videos(
    name: str, videos: Sequence[Path], prompts: Sequence[Prompt]
) -> tuple[fo.Dataset, list[str], str]:
    """Puts videos with the same prompts into a dataset that stays.

    A video that is there already keeps its sample; its prompts are replaced. What was
    made from the old ones stays until a job overwrites it: see :func:`has_others`.

    Args:
        name: Name of the dataset; created if absent.
        videos: Absolute paths of the videos.
        prompts: Prompts for each of the videos; all boxes and masks, or all points.

    Returns:
        The dataset, the ids of the videos' samples, and the field of the prompts.

    Raises:
        VideoError: When a video can't be read.
        PromptError: When a prompt doesn't fit a video.
        RegionCapError: When points are mixed with boxes.
    """
    field = _field_of(prompts)
    dataset, ids = open_videos(name, videos)
    for sample_id in ids:
        sample = dataset[sample_id]
        write_prompts(sample, field, prompts)
        sample.save()
    return dataset, ids, f"frames.{field}"


def open_videos(name: str, videos: Sequence[Path]) -> tuple[fo.Dataset, list[str]]:
    """Puts videos into a dataset that stays.

    Args:
        name: Name of the dataset; created if absent.
        videos: Absolute paths of the videos; those in the dataset keep their samples.

    Returns:
        The dataset and the ids of the videos' samples.

    Raises:
        VideoError: When a video can't be read; then no dataset is made.
    """
    measured = [read_metadata(video) for video in videos]
    dataset = fo.load_dataset(name) if fo.dataset_exists(name) else _new_dataset(name)
    ids = []
    for video, metadata in zip(videos, measured, strict=True):
        known = dataset.match(fo.ViewField("filepath") == str(video)).values("id")
        sample = dataset[known[0]] if known else fo.Sample(filepath=str(video))
        sample.metadata = fo.VideoMetadata(**asdict(metadata))
        if known:
            sample.save()
        else:
            dataset.add_sample(sample)
        ids.append(sample.id)
    return dataset, ids


@contextmanager
def dropped_if_empty(name: str) -> Iterator[None]:
    """Deletes the dataset that its block made if it fails before it wrote any label.

    Prompts don't count. What is cancelled is kept, to go on from there.

    Args:
        name: Name of the dataset; one that is there already is never deleted.
    """
    is_new = not fo.dataset_exists(name)
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        raise
    except BaseException:
        if is_new and fo.dataset_exists(name):
            dataset = fo.load_dataset(name)
            written = [*caption_fields(dataset), *track_fields(dataset)]
            written = [field for field in written if field != f"frames.{PROMPTS}"]
            if not any(dataset.count(f"{field}.detections") for field in written):
                fo.delete_dataset(name)
        raise


def _new_dataset(name: str) -> fo.Dataset:
    """Returns an empty dataset, where an object and its captions are of one color."""
    try:
        dataset = fo.Dataset(name, persistent=True)
    except ValueError as error:
        raise RegionCapError(
            f"{name!r} can't be the name of a dataset ({error}); give another one"
        ) from error
    dataset.app_config.color_scheme = fo.ColorScheme(color_by="instance")
    dataset.save()
    return dataset
