"""Makes datasets with prompts from files and boxes of the shell."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import fiftyone as fo
import fiftyone.core.media as fom

from fiftyone_regioncap.core.errors import (
    Canceled,
    PromptError,
    RegionCapError,
)
from fiftyone_regioncap.core.options import is_text
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset.fields import caption_fields, track_fields
from fiftyone_regioncap.dataset.metadata import describe
from fiftyone_regioncap.dataset.prompts import same_prompts, write_prompts
from fiftyone_regioncap.dataset.sequences import as_videos
from fiftyone_regioncap.propagation.prompts import PromptProblem, check_prompts
from fiftyone_regioncap.video.image_source import images_in
from fiftyone_regioncap.video.reader import VideoMetadata, read_metadata

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov"}
    | {".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)

OnFailure: TypeAlias = Callable[[Path, RegionCapError, bool], None]
"""Takes a video, why it or one of its prompts can't be used, and whether none of it can
be."""

PROMPTS = "prompts"
"""The frame-level field for prompts given as boxes or masks."""

POINTS = "prompt_points"
"""The frame-level field for prompts given as points."""

SEQUENCE = "sequence"
"""The field of images with the folder of the sequence that they are of."""


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
        if file.suffix.lower() in VIDEO_SUFFIXES | {".gif"}
        and file.is_file()
        and is_text(file.name)
    )
    if not videos:
        raise RegionCapError(
            f"{path} holds no videos ({', '.join(sorted(VIDEO_SUFFIXES))})"
        )
    return videos


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """Returns the images of a folder that is a sequence of images, in their order.

    Returns:
        None of a folder that holds videos too, or of anything else.
    """
    if not os.path.isdir(path):
        return []
    if any(file.suffix.lower() in VIDEO_SUFFIXES for file in Path(path).iterdir()):
        return []
    return [file.resolve() for file in images_in(path)]


def add_images(
    name: str, images: Sequence[Path], prompts: Sequence[Prompt]
) -> tuple[fo.DatasetView, bool]:
    """Puts a sequence of images with prompts into a dataset of images that stays.

    Args:
        name: Name of the dataset; created if absent.
        images: Absolute paths of the images of one folder, in their order.
        prompts: Prompts, as for a video; none to leave those that are there.

    Returns:
        The view that groups the images, in their order; and whether they had other
        prompts before.

    Raises:
        VideoError: When an image can't be read.
        PromptError: When a prompt doesn't fit.
        RegionCapError: When the dataset holds no images, or points are mixed with
            boxes.
    """
    dataset = fo.load_dataset(name) if fo.dataset_exists(name) else _new_dataset(name)
    if dataset.media_type not in (None, fom.IMAGE):
        raise RegionCapError(f"{name} is no dataset of images; choose another name")
    known = set(dataset.values("filepath"))
    folder = str(images[0].parent)
    numbers = {str(image): number for number, image in enumerate(images, start=1)}
    new = [
        fo.Sample(filepath=path, frame_number=number, **{SEQUENCE: folder})
        for path, number in numbers.items()
        if path not in known
    ]
    dataset.add_samples(new, progress=False)
    if new and numbers.keys() & known:  # some may come before those that were there
        dataset.set_values("frame_number", numbers, key_field="filepath")
    own = dataset.match(fo.ViewField(SEQUENCE) == folder)
    view = own.group_by(SEQUENCE, order_by="frame_number")
    if not prompts:
        return view, False
    field = _field_of(prompts)
    with as_videos(view) as videos:
        sample = videos.samples.first()
        others = not new and not same_prompts(sample, field, prompts)
        write_prompts(sample, field, prompts)
    return view, others


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
        RegionCapError: When points are mixed with boxes.
    """
    if not fo.dataset_exists(name):
        return False
    dataset, field = fo.load_dataset(name), _field_of(prompts)
    known = dataset.match(fo.ViewField("filepath").is_in([str(v) for v in videos]))
    return any(
        not same_prompts(sample, field, _fitting(sample, prompts)[0])
        for sample in known
    )


def _fitting(
    sample: fo.Sample, prompts: Sequence[Prompt]
) -> tuple[list[Prompt], list[PromptProblem]]:
    """Separates the prompts that fit a video from those that don't."""
    metadata = describe(sample).metadata
    return check_prompts(
        prompts,
        height=metadata.frame_height,
        width=metadata.frame_width,
        frame_count=metadata.total_frame_count,
    )


def _field_of(prompts: Sequence[Prompt]) -> str:
    pointed = {prompt.points is not None for prompt in prompts}
    if len(pointed) > 1:
        raise RegionCapError("give all prompts as boxes, or all as points")
    return POINTS if pointed == {True} else PROMPTS


def add_videos(
    name: str,
    videos: Sequence[Path],
    prompts: Sequence[Prompt],
    *,
    failed: OnFailure | None = None,
) -> tuple[fo.Dataset, list[str], str]:
    """Puts videos with the same prompts into a dataset that stays.

    A video that is there already keeps its sample; its prompts are replaced. What was
    made from the old ones stays until a job overwrites it: see :func:`has_others`.

    Args:
        name: Name of the dataset; created if absent.
        videos: Absolute paths of the videos.
        prompts: Prompts for each of the videos; all boxes and masks, or all points.
        failed: Called with each video that can't be used, and each prompt that doesn't
            fit its video, which are left out; None to raise the first of these errors.

    Returns:
        The dataset, the ids of the videos' samples, and the field of the prompts.

    Raises:
        VideoError: When a video can't be read, or none of them.
        PromptError: When a prompt doesn't fit a video, or none fits any.
        RegionCapError: When points are mixed with boxes.
    """
    field = _field_of(prompts)
    dataset, ids = open_videos(name, videos, failed=failed)
    marked: list[str] = []
    errors: list[PromptError] = []
    for sample_id in ids:
        sample = dataset[sample_id]
        good, problems = _fitting(sample, prompts)
        for problem in problems:
            errors.append(PromptError(problem.reason))
            if failed is None:
                raise errors[-1]
            failed(Path(sample.filepath), errors[-1], not good)
        if good:
            write_prompts(sample, field, good)
            marked.append(sample_id)
    if not marked and errors:
        raise errors[0]
    return dataset, marked, f"frames.{field}"


def open_videos(
    name: str, videos: Sequence[Path], *, failed: OnFailure | None = None
) -> tuple[fo.Dataset, list[str]]:
    """Puts videos into a dataset that stays.

    Args:
        name: Name of the dataset; created if absent.
        videos: Absolute paths of the videos; those in the dataset keep their samples.
        failed: Called with each video that can't be read, which is left out; None to
            raise the first of these errors.

    Returns:
        The dataset and the ids of the videos' samples.

    Raises:
        VideoError: When a video can't be read, or none of them; then no dataset is
            made.
        RegionCapError: When FiftyOne takes a file for an image.
    """
    measured: dict[Path, VideoMetadata] = {}
    errors: list[RegionCapError] = []
    _make_known(videos)
    for video in videos:
        try:
            _refuse_images(video)
            measured[video] = read_metadata(video)
        except RegionCapError as error:
            errors.append(error)
            if failed is None:
                raise
            failed(video, error, True)
    if not measured and errors:
        raise errors[0]
    dataset = fo.load_dataset(name) if fo.dataset_exists(name) else _new_dataset(name)
    ids = []
    for video, metadata in measured.items():
        known = dataset.match(fo.ViewField("filepath") == str(video)).values("id")
        sample = (
            dataset[known[0]]
            if known
            else fo.Sample(filepath=str(video), media_type=fom.VIDEO)
        )
        sample.metadata = fo.VideoMetadata(**asdict(metadata))
        if known:
            sample.save()
        else:
            dataset.add_sample(sample)
        ids.append(sample.id)
    return dataset, ids


def _make_known(videos: Iterable[Path]) -> None:
    """Makes FiftyOne take files for videos.

    It asks the system's table of suffixes, which may be absent, has no .3gp or takes
    .ts for texts, also when it copies or deletes samples.
    """
    for suffix in {video.suffix.lower() for video in videos} & VIDEO_SUFFIXES:
        known, _ = mimetypes.guess_type(f"video{suffix}")
        if known is None or not known.startswith("video/"):
            mimetypes.add_type(f"video/x-{suffix[1:]}", suffix)


def _refuse_images(video: Path) -> None:
    """Makes sure that FiftyOne doesn't take a file for an image.

    Raises:
        RegionCapError: When it does, as with GIF, which its App can't play.
    """
    if fom.get_media_type(str(video)) == fom.IMAGE:
        raise RegionCapError(
            f"{video}: FiftyOne takes this kind of file for an image; convert it to MP4"
        )


@contextmanager
def dropped_if_empty(name: str) -> Iterator[None]:
    """Deletes the dataset that its block made if it fails before it wrote any label.

    Prompts don't count. What is canceled is kept, to go on from there.

    Args:
        name: Name of the dataset; one that is there already is never deleted.
    """
    is_new = not fo.dataset_exists(name)
    try:
        yield
    except (Canceled, KeyboardInterrupt):
        raise
    except BaseException:
        if is_new and fo.dataset_exists(name):
            dataset = fo.load_dataset(name)
            written = [*caption_fields(dataset), *track_fields(dataset)]
            written += dataset.get_field_schema(embedded_doc_type=fo.Detections)
            prompts = {PROMPTS, f"frames.{PROMPTS}"}
            written = [field for field in written if field not in prompts]
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
