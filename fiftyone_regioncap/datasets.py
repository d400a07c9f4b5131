"""From files and boxes in the shell to a dataset with prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import fiftyone as fo
import numpy as np

from fiftyone_regioncap.errors import RegionCapError
from fiftyone_regioncap.labels.metadata import video_metadata
from fiftyone_regioncap.regions import Prompt, crop_mask

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"}
)

PROMPTS = "prompts"
"""The frame-level field for prompts given as boxes or masks."""

POINTS = "prompt_points"
"""The frame-level field for prompts given as points."""


def find_videos(path: str | os.PathLike[str]) -> list[Path]:
    """The video itself, or the videos directly inside a folder, by name.

    Raises:
        RegionCapError: when there is none.
    """
    path = Path(path)
    if not path.exists():
        raise RegionCapError(f"there is no {path}; give a video or a folder of videos")
    if path.is_file():
        return [path.resolve()]
    videos = sorted(
        file.resolve()
        for file in path.iterdir()
        if file.suffix.lower() in VIDEO_SUFFIXES
    )
    if not videos:
        raise RegionCapError(
            f"{path} holds no videos ({', '.join(sorted(VIDEO_SUFFIXES))})"
        )
    return videos


def open_dataset(name: str) -> fo.Dataset:
    """Loads a dataset.

    Raises:
        RegionCapError: when there is none of that name.
    """
    if not fo.dataset_exists(name):
        known = ", ".join(fo.list_datasets()[:20]) or "none yet"
        raise RegionCapError(f"there is no dataset {name!r}; there are: {known}")
    return fo.load_dataset(name)


def add_videos(
    name: str, videos: Sequence[Path], prompts: Sequence[Prompt]
) -> tuple[fo.Dataset, list[str], str]:
    """Puts videos with the same prompts into a dataset that stays.

    A video that is there already keeps its sample; its prompts are replaced, and what
    was made from other prompts is marked as not complete.

    Args:
        name: of the dataset; made when it doesn't exist.
        videos: absolute paths.
        prompts: for each of the videos; all boxes and masks, or all points.

    Returns:
        the dataset, the ids of the videos' samples, and the field of the prompts.

    Raises:
        VideoError: when a video can't be read.
        PromptError: when a prompt doesn't fit a video.
        RegionCapError: when points are mixed with boxes.
    """
    pointed = {prompt.points is not None for prompt in prompts}
    if len(pointed) > 1:
        raise RegionCapError("give all prompts as boxes, or all as points")
    field = POINTS if pointed == {True} else PROMPTS
    dataset = (
        fo.load_dataset(name)
        if fo.dataset_exists(name)
        else fo.Dataset(name, persistent=True)
    )
    ids = []
    for video in videos:
        known = dataset.match(fo.ViewField("filepath") == str(video)).values("id")
        sample = dataset[known[0]] if known else fo.Sample(filepath=str(video))
        sample.metadata = video_metadata(sample)
        _write_prompts(sample, field, prompts)
        if known:
            sample.save()
        else:
            dataset.add_sample(sample)
        ids.append(sample.id)
    return dataset, ids, f"frames.{field}"


def _write_prompts(sample: fo.Sample, field: str, prompts: Sequence[Prompt]) -> None:
    metadata = sample.metadata
    height, width = metadata.frame_height, metadata.frame_width
    by_frame: dict[int, list[fo.Label]] = {}
    for prompt in prompts:
        prompt.check(height, width, metadata.total_frame_count)
        label = _label_of(prompt, height, width)
        by_frame.setdefault(prompt.frame + 1, []).append(label)
    for number, frame in sample.frames.items():
        if number not in by_frame and frame.has_field(field):
            frame[field] = None
    for number, labels in by_frame.items():
        if field == POINTS:
            sample.frames[number][field] = fo.Keypoints(keypoints=labels)
        else:
            sample.frames[number][field] = fo.Detections(detections=labels)


def _label_of(prompt: Prompt, height: int, width: int) -> fo.Label:
    if prompt.points is not None:
        signs = True if prompt.point_signs is None else prompt.point_signs
        return fo.Keypoint(
            label=prompt.label,
            index=prompt.object_id,
            points=(prompt.points / [width, height]).tolist(),
            sam_labels=np.broadcast_to(signs, len(prompt.points)).astype(int).tolist(),
        )
    box, mask = prompt.box, None
    if prompt.mask is not None:
        cropped = crop_mask(prompt.mask)
        if cropped is not None:
            box, mask = cropped
    assert box is not None  # a prompt that passed its check has one
    x1, y1, x2, y2 = np.clip(box, 0, [width, height, width, height]).tolist()
    return fo.Detection(
        label=prompt.label,
        index=prompt.object_id,
        bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
        mask=mask,
    )
