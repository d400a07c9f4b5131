"""Clips of regions out of a dataset: frames of videos or images, with masks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import fiftyone.core.media as fom
import numpy as np

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.types import Frame, Mask, Prompt, RegionClip
from fiftyone_regioncap.dataset.regions import ImageRegion, read_regions
from fiftyone_regioncap.dataset.targets import Sample
from fiftyone_regioncap.dataset.tracks import read_masks
from fiftyone_regioncap.propagation.base import (
    Frames,
    PropagationRequest,
    Propagator,
)
from fiftyone_regioncap.propagation.prompts import check_prompts
from fiftyone_regioncap.video.clips import ClipPlan, assemble, box_mask
from fiftyone_regioncap.video.images import load_image
from fiftyone_regioncap.video.reader import VideoReader


@dataclass(frozen=True)
class ImageFrames:
    """An image as a video of one frame, so that propagators can segment it.

    Attributes:
        image: RGB image, uint8 (H, W, 3).
    """

    image: Frame

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.image.shape[0]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.image.shape[1]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Frame:
        return self.image


def read_image(path: str) -> Frame:
    """Reads an image upright, uint8 (H, W, 3) RGB.

    Raises:
        RegionCapError: When it is missing or no image.
    """
    try:
        return load_image(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise RegionCapError(f"{path} can't be read as an image: {error}") from error


def read_frames(sample: Sample) -> Frames:
    """Opens the frames of a sample; close those of a video after use."""
    if sample.media_type == fom.IMAGE:
        return ImageFrames(read_image(sample.filepath))
    return VideoReader(sample.filepath)


def iter_clips(
    sample: Sample, tracks: str, plans: Iterable[ClipPlan]
) -> Iterator[tuple[ClipPlan, RegionClip]]:
    """Makes the clips of tracks of one video, in the order of time.

    Args:
        sample: A video in a dataset.
        tracks: Field of the tracks, with or without ``frames.`` in front.
        plans: The clips to make.

    Raises:
        VideoError: When the video can't be read.
        FieldError: When there is no such field, or a mask on disk can't be read.
    """
    plans = list(plans)
    if not plans:
        return
    with VideoReader(sample.filepath) as reader:
        masks = partial(read_masks, sample, tracks)
        yield from assemble(plans, reader.read, masks, reader.timeline)


def iter_image_clips(
    sample: Sample,
    field: str,
    ids: Collection[str] | None = None,
    segmenter: Propagator | None = None,
) -> Iterator[tuple[ImageRegion, RegionClip]]:
    """Makes a clip of one frame of each region of an image.

    Args:
        sample: An image in a dataset.
        field: Field of the regions.
        ids: Label ids of the regions to take; None for all.
        segmenter: See :func:`region_masks`.
    """
    image = read_image(sample.filepath)
    height, width = image.shape[:2]
    found = read_regions(sample, field, height=height, width=width, with_problems=True)
    regions = [region for region in found if ids is None or region.id in ids]
    masks, problems = region_masks(image, regions, segmenter)
    for region, mask in zip(regions, masks, strict=True):
        problem = problems.get(region.id)
        yield region, RegionClip([image], [mask], label=region.label, problem=problem)


def region_masks(
    image: Frame, regions: Sequence[ImageRegion], segmenter: Propagator | None
) -> tuple[list[Mask], dict[str, str]]:
    """Returns the mask of each region: its own, else what the segmenter makes of it.

    Args:
        image: RGB image, uint8 (H, W, 3).
        regions: Regions of that image.
        segmenter: Propagator that turns boxes and points into masks; without one a box
            is its own mask, and points have none.

    Returns:
        Masks, bool (H, W) each, and why regions have none by their label ids: these
        masks are empty.
    """
    height, width = image.shape[:2]
    masks = [np.zeros((height, width), dtype=bool) for _ in regions]
    problems = {region.id: region.problem for region in regions if region.problem}
    prompts = []
    for number, region in enumerate(regions):
        shape = region.shape
        if shape.mask is not None:
            masks[number] = shape.mask
        elif shape.points is not None and segmenter is None:
            problems[region.id] = (
                f"label {region.id}: points need a segmenter to become a mask; choose "
                "one, such as mobilesam"
            )
        elif region.id not in problems:
            box = shape.box if shape.points is None else None
            prompts.append(
                Prompt(
                    number,
                    0,
                    box=box,
                    points=shape.points,
                    point_signs=shape.point_signs,
                )
            )
    good, bad = check_prompts(prompts, height=height, width=width, frame_count=1)
    for one in bad:
        label = regions[one.prompt.object_id].id
        problems[label] = f"label {label}: {one.reason}"
    if segmenter is None:
        for prompt in good:
            assert prompt.box is not None  # points were refused above
            masks[prompt.object_id] = box_mask(prompt.box, height, width)
    elif good:
        request = PropagationRequest(ImageFrames(image), good, overlap=True)
        for number, item in next(iter(segmenter.propagate(request))).objects.items():
            if item.mask is not None:
                masks[number] = item.mask
    return masks, problems
