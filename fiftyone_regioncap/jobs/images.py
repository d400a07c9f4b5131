"""Jobs on images: regions that are labeled already get captions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass

import fiftyone.core.collections as foco
import fiftyone.core.sample as fos
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter
from fiftyone_regioncap.core.types import Caption, Frame, Mask, Prompt, RegionClip
from fiftyone_regioncap.dataset import fields, runs, schema, status
from fiftyone_regioncap.dataset.regions import (
    ImageRegion,
    read_regions,
    write_region_captions,
)
from fiftyone_regioncap.dataset.targets import image_targets, name_of
from fiftyone_regioncap.jobs.ledger import Ledger, Summary
from fiftyone_regioncap.jobs.options import RegionOptions
from fiftyone_regioncap.propagation.base import PropagationRequest, Propagator
from fiftyone_regioncap.video.clips import box_mask
from fiftyone_regioncap.video.reader import decode_ahead


@dataclass(frozen=True)
class Still:
    """An image as a video of one frame, so that propagators can segment it.

    Attributes:
        image: uint8 (H, W, 3) RGB.
    """

    image: Frame

    @property
    def height(self) -> int:
        """In pixels."""
        return self.image.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.image.shape[1]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Frame:
        return self.image


@dataclass(frozen=True)
class _Waiting:
    """A region that is being captioned, or without one the end of an image."""

    sample: fos.Sample
    region: ImageRegion | None = None
    skipped: bool = False
    error: Exception | None = None


def run(
    samples: foco.SampleCollection,
    options: RegionOptions,
    captioner: Captioner,
    *,
    segmenter: Propagator | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Summary:
    """Captions the regions of images.

    Args:
        samples: images: a dataset or a view.
        options: how.
        captioner: who.
        segmenter: turns boxes and points into masks; without one a box is its own mask
            and points are an error of their image.
        listener: is told how far the job is.
        cancel: set it to stop the job after its next step.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when the field is absent or of the wrong kind; nothing is written.
        Cancelled: when ``cancel`` was set; what was written stays.
    """
    targets = image_targets(samples)
    fields.require_regions(targets.dataset, options.field)
    schema.declare_regions(targets.dataset, options.field)
    summary = Summary(samples=len(targets))
    reporter = ProgressReporter(["caption"], len(targets), listener, cancel)
    ledger = Ledger(summary, reporter)
    began = time.monotonic()
    waiting: deque[_Waiting] = deque()

    def clips() -> Iterator[RegionClip]:
        for _, sample in targets.samples():
            for item, clip in _clips(sample, options, segmenter):
                waiting.append(item)
                if clip is not None:
                    yield clip

    made: dict[str, Caption] = {}

    def end(item: _Waiting) -> None:
        if made:
            info = captioner.info
            write_region_captions(
                item.sample, options.field, made, model=info.model, space=info.space
            )
        made.clear()
        if item.error is not None:
            ledger.failed("caption", item.sample, options.field, item.error)
        elif item.skipped:
            summary.skipped += 1
        else:
            status.write_status(item.sample, options.field, "complete")
        reporter.finish("caption", name_of(item.sample))

    ahead = decode_ahead(clips(), depth=captioner.info.batch_size)
    captions = caption_stream(captioner, ahead, prompt=options.prompt)
    with closing(ahead), closing(captions):
        for caption in captions:
            while waiting[0].region is None:
                end(waiting.popleft())
            item = waiting.popleft()
            assert item.region is not None  # ends were taken off above
            made[item.region.id] = caption
            ledger.captioned(caption)
            reporter.check_cancelled()
    for item in waiting:
        end(item)

    summary.seconds = time.monotonic() - began
    summary.run = runs.run_key("caption_regions")
    config = {"regions": asdict(options), "captioner": asdict(captioner.info)}
    results = {"summary": summary.to_dict()}
    runs.record_run(targets.dataset, summary.run, config, results)
    return summary


def _clips(
    sample: fos.Sample, options: RegionOptions, segmenter: Propagator | None
) -> Iterator[tuple[_Waiting, RegionClip | None]]:
    """The regions of one image as clips of one frame, and the mark of its end."""
    try:
        image = read_image(sample.filepath)
        height, width = image.shape[:2]
        regions = [
            region
            for region in read_regions(
                sample, options.field, height=height, width=width
            )
            if options.overwrite or not region.caption
        ]
        masks = region_masks(image, regions, segmenter)
        for region, mask in zip(regions, masks, strict=True):
            clip = RegionClip(frames=[image], masks=[mask], label=region.label)
            yield _Waiting(sample, region), clip
        yield _Waiting(sample, skipped=not regions), None
    except Exception as error:
        yield _Waiting(sample, error=error), None


def read_image(path: str) -> Frame:
    """Reads an image upright, uint8 (H, W, 3) RGB.

    Raises:
        RegionCapError: when it is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise RegionCapError(f"{path} can't be read as an image: {error}") from error


def region_masks(
    image: Frame, regions: Sequence[ImageRegion], segmenter: Propagator | None
) -> list[Mask]:
    """The mask of each region: its own, else what the segmenter makes of it.

    Args:
        image: uint8 (H, W, 3) RGB.
        regions: of that image.
        segmenter: see :func:`run`.

    Returns:
        bool (H, W) each.

    Raises:
        RegionCapError: when points come without a segmenter.
        PromptError: when a box or point doesn't lie on the image.
    """
    height, width = image.shape[:2]
    prompts = [
        Prompt(
            number,
            0,
            box=region.shape.box if region.shape.points is None else None,
            points=region.shape.points,
            point_signs=region.shape.point_signs,
        )
        for number, region in enumerate(regions)
        if region.shape.mask is None
    ]
    made: dict[int, Mask | None] = {}
    if prompts and segmenter is not None:
        request = PropagationRequest(Still(image), prompts, overlap=True)
        still = next(iter(segmenter.propagate(request)))
        made = {number: item.mask for number, item in still.objects.items()}
    elif any(prompt.points is not None for prompt in prompts):
        raise RegionCapError(
            "keypoints need a segmenter to become masks; choose one, such as mobilesam"
        )
    else:
        made = {
            prompt.object_id: box_mask(prompt.box, height, width)
            for prompt in prompts
            if prompt.box is not None
        }
    nothing = np.zeros((height, width), dtype=bool)

    def mask(number: int, region: ImageRegion) -> Mask:
        found = made.get(number, region.shape.mask)
        return nothing if found is None else found

    return [mask(number, region) for number, region in enumerate(regions)]
