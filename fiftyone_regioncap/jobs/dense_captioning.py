"""A job that says what is everywhere on pictures, and where a text is on them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import fiftyone.core.collections as foco
import fiftyone.core.media as fom
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.confidence import short_label
from fiftyone_regioncap.captioning.patchioner import dense
from fiftyone_regioncap.captioning.patchioner.captioner import (
    PatchionerCaptioner,
    caption_of,
)
from fiftyone_regioncap.captioning.patchioner.vision import FrameFeatures
from fiftyone_regioncap.core.errors import Cancelled
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter
from fiftyone_regioncap.core.types import Frame, Mask
from fiftyone_regioncap.dataset import fields, runs, status
from fiftyone_regioncap.dataset.dense import CaptionedPart, DenseWriter
from fiftyone_regioncap.dataset.schema import declare_dense
from fiftyone_regioncap.dataset.targets import (
    Sample,
    Target,
    image_targets,
    name_of,
    video_targets,
)
from fiftyone_regioncap.jobs.images import Still, read_image
from fiftyone_regioncap.jobs.ledger import Ledger, Summary
from fiftyone_regioncap.jobs.options import DenseCaptionOptions
from fiftyone_regioncap.propagation.base import Frames
from fiftyone_regioncap.propagation.proposals import (
    ProposalOptions,
    Segmenter,
    proposals,
)
from fiftyone_regioncap.video.reader import VideoReader

MAP_SIDE = 256
"""Longest side of a stored map in pixels; the App stretches it over the picture. Maps
come from some 37 x 37 patches, and at full size a frame of 4K would exceed what the
database takes in one document."""


def run(
    samples: foco.SampleCollection,
    options: DenseCaptionOptions,
    captioner: PatchionerCaptioner,
    *,
    segmenter: Segmenter | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Summary:
    """Describes all parts of images, or of some frames of videos.

    Pictures that have parts (and the map of this query) are passed over, so that a
    killed job goes on where it stopped, and another query costs no captions.

    Args:
        samples: images or videos: a dataset, a view, or a clips view.
        options: how.
        captioner: who.
        segmenter: finds the parts; without one they are clusters of like patches.
        listener: is told how far the job is.
        cancel: set it to stop the job after the picture at hand.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when an output is no name for a field, or one of another kind;
            nothing is written.
        PromptError: when the query is too long.
        WeightsError: when there is a query and no text tower.
        Cancelled: when ``cancel`` was set; what was written stays.
    """
    images = samples.media_type == fom.IMAGE
    targets = image_targets(samples) if images else video_targets(samples)
    fields.require_output(options.output)
    vector, heatmap = None, None
    if options.query is not None:
        heatmap = fields.require_output(options.heatmap, options.output)
        vector = captioner.embed_text([options.query])[0]
    declare_dense(targets.dataset, options.output, heatmap, frames=not images)
    summary = Summary(samples=len(targets))
    reporter = ProgressReporter(["caption"], len(targets), listener, cancel)
    ledger = Ledger(summary, reporter)
    describer = _Describer(options, captioner, segmenter, vector)
    began = time.monotonic()
    for target, sample in targets.samples():
        reporter.check_cancelled()
        try:
            if not _describe(sample, target, describer, ledger):
                summary.skipped += 1
            status.write_status(sample, options.output, "complete")
        except Cancelled:
            raise
        except Exception as error:
            ledger.failed("caption", sample, options.output, error)
        reporter.finish("caption", name_of(sample))
    summary.seconds = time.monotonic() - began
    summary.run = runs.run_key("caption_everything")
    config = {"options": asdict(options), "captioner": asdict(captioner.info)}
    results = {"summary": summary.to_dict()}
    runs.record_run(targets.dataset, summary.run, config, results)
    return summary


@dataclass(frozen=True)
class _Describer:
    """What is done to each picture.

    Attributes:
        options: of the job.
        captioner: who describes.
        segmenter: who finds the parts; None for clusters.
        vector: (D,) of the query; None without one.
    """

    options: DenseCaptionOptions
    captioner: PatchionerCaptioner
    segmenter: Segmenter | None
    vector: NDArray[np.float32] | None

    def parts(self, frame: Frame, features: FrameFeatures) -> list[CaptionedPart]:
        """Finds the parts of a picture and describes each."""
        found = dense.caption_everything(
            self.captioner.model,
            features,
            count=self.options.count,
            proposals=self._proposals(frame, features),
        )
        captions = [caption_of(region.description, None) for region in found]
        return [
            CaptionedPart(
                region.mask, replace(caption, label=short_label(caption.text))
            )
            for region, caption in zip(found, captions, strict=True)
        ]

    def _proposals(self, frame: Frame, features: FrameFeatures) -> list[Mask] | None:
        if self.segmenter is None:
            return None
        grid = features.grid
        # Where cropping has cut the picture off, there is nothing to describe.
        seen = dense.patch_mask(np.ones((grid.rows, grid.columns), dtype=bool), grid)
        found = proposals(frame, self.segmenter, ProposalOptions())
        masks = [item.mask for item in found if (item.mask & seen).any()]
        return masks[: self.options.count]


def _describe(
    sample: Sample, target: Target, describer: _Describer, ledger: Ledger
) -> bool:
    """Describes one sample; False when all of it was described before."""
    options, query = describer.options, describer.options.query
    model = describer.captioner.info.model
    name = name_of(sample)
    heatmap = None if query is None else options.heatmap
    with (
        DenseWriter(sample, options.output, heatmap) as writer,
        _opened(sample) as frames,
    ):
        numbers = _chosen(target.ranges, len(frames), options.every)
        if options.overwrite:
            ranges = target.ranges
            writer.clear(ranges and [(start, stop - 1) for start, stop in ranges])
        captioned = writer.captioned()
        mapped = set(numbers)
        if query is not None:
            writer.clear_other_maps(query)
            mapped = writer.mapped(query)
        left = [n for n in numbers if n not in captioned or n not in mapped]
        if left:
            status.write_status(sample, options.output, "partial")
        for done, number in enumerate(left, start=1):
            frame = frames[number]
            (features,) = describer.captioner.features([frame])
            if number not in captioned:
                parts = describer.parts(frame, features)
                writer.write_parts(number, parts, model=model)
                for part in parts:
                    ledger.captioned(part.caption)
            if query is not None and describer.vector is not None:
                values = similarity(features, describer.vector)
                writer.write_map(number, values, query)
            ledger.reporter.update("caption", name, done, len(left))
        return bool(left)


def similarity(
    features: FrameFeatures, vector: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A heat map over the whole frame, no larger than it is worth storing.

    Args:
        features: of the frame.
        vector: (D,) of a text or a region.

    Returns:
        float32 (h, w) in [-1, 1], at most :data:`MAP_SIDE` a side; see
        :func:`~.dense.heatmap`.
    """
    grid = features.grid
    scale = min(1.0, MAP_SIDE / max(grid.height, grid.width))
    small = replace(
        grid,
        height=max(1, round(grid.height * scale)),
        width=max(1, round(grid.width * scale)),
    )
    return dense.heatmap(replace(features, grid=small), vector)


@contextmanager
def _opened(sample: Sample) -> Iterator[Frames]:
    """The pictures of a sample by number."""
    if sample.media_type == fom.IMAGE:
        yield Still(read_image(sample.filepath))
    else:
        with VideoReader(sample.filepath) as reader:
            yield reader


def _chosen(
    ranges: Sequence[tuple[int, int]] | None, length: int, every: int
) -> list[int]:
    """The frames to look at, each range from its first on."""
    return sorted(
        {
            number
            for start, stop in ranges or ((0, length),)
            for number in range(start, min(stop, length), every)
        }
    )
