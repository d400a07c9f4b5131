"""The stage that captions all parts of images or frames, and maps where a text is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

import fiftyone as fo
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
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import Frame, Mask
from fiftyone_regioncap.dataset import fields, schema, status
from fiftyone_regioncap.dataset.clips import read_frames
from fiftyone_regioncap.dataset.dense import CaptionedPart, DenseWriter, part_is_foreign
from fiftyone_regioncap.dataset.store import frame_path
from fiftyone_regioncap.dataset.targets import Sample, Target, media_targets, name_of
from fiftyone_regioncap.jobs.base import RunContext, SampleStage
from fiftyone_regioncap.jobs.options import DenseCaptionOptions
from fiftyone_regioncap.jobs.proposing import require_segmenter
from fiftyone_regioncap.jobs.summary import Report, Summary
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.propagation.proposals import (
    ProposalOptions,
    Segmenter,
    proposals,
)
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.video.reader import VideoReader

MAP_SIDE = 256
"""Longest side of a stored map in pixels; the App stretches it over the image. Maps
come from some 37 x 37 patches, and at full size a frame of 4K would exceed what the
database takes in one document."""


class DenseCaptioning(SampleStage[DenseCaptionOptions]):
    """Captions all parts of images, or of some frames of videos; see :class:`Stage`.

    Images and frames that have parts (and the map of this query) are passed over, so
    that a killed job goes on where it stopped, and another query costs no captions.

    Args:
        options: Fields, frames, and the text to look for.
        captioner: A Patch-ioner.
        propagator: Its model finds the parts; without one they are clusters of like
            patches.
    """

    name: ClassVar[StageName] = "caption"
    options = DenseCaptionOptions
    summary: ClassVar[type[Report]] = Summary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {
        "captioner": CAPTIONERS,
        "propagator": PROPAGATORS,
    }
    find = media_targets

    def __init__(
        self,
        options: DenseCaptionOptions,
        captioner: PatchionerCaptioner,
        propagator: Propagator | Segmenter | None = None,
    ) -> None:
        if not isinstance(captioner, PatchionerCaptioner):
            raise BackendError(
                "the captioner captions marked regions only; use the captioner "
                "patchioner"
            )
        super().__init__(options)
        self._captioner = captioner
        self._segmenter = None if propagator is None else require_segmenter(propagator)
        self._heatmap: str | None = None
        self._vector: NDArray[np.float32] | None = None

    @classmethod
    def writes(cls, options: DenseCaptionOptions) -> tuple[str, ...]:
        """Returns the fields of parts and maps; see :meth:`Stage.writes`."""
        maps = () if options.query is None else (frame_path(options.heatmap),)
        return (frame_path(options.output), *maps)

    @classmethod
    def check(
        cls,
        options: DenseCaptionOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the fields of parts and maps; see :meth:`Stage.check`."""
        kinds = {fields.require_output(options.output): fo.Detections}
        if options.query is not None:
            kinds[fields.require_output(options.heatmap, options.output)] = fo.Heatmap
        frames = samples.media_type != fom.IMAGE
        for field, kind in kinds.items():
            name = frame_path(field)
            path = fields.frames_field(name) if frames else name
            cls.require_room(samples, path, kind, part_is_foreign(name, frames))

    def declare(self, samples: foco.SampleCollection) -> None:
        """Embeds the query and declares the fields; see :meth:`Stage.declare`."""
        options, dataset = self._options, samples._root_dataset
        if options.query is not None:
            self._heatmap = options.heatmap
            self._vector = self._captioner.embed_text([options.query])[0]
        frames = samples.media_type != fom.IMAGE
        schema.declare_dense(dataset, options.output, self._heatmap, frames=frames)
        schema.declare_status(dataset, options.output)

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Captions one sample; False when all of it was captioned before."""
        options, query = self._options, self._options.query
        with ExitStack() as opened:
            writer = DenseWriter(sample, options.output, self._heatmap)
            opened.enter_context(writer)
            frames = read_frames(sample)
            if isinstance(frames, VideoReader):
                opened.enter_context(frames)
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
                (features,) = self._captioner.features([frame])
                if number not in captioned:
                    parts = self._parts(frame, features)
                    model = self._captioner.info.model
                    writer.write_parts(number, parts, model=model)
                    for part in parts:
                        context.captioned(part.caption)
                if query is not None and self._vector is not None:
                    values = similarity(features, self._vector)
                    writer.write_map(number, values, query)
                context.reporter.update(self.name, name_of(sample), done, len(left))
        status.settle(sample, options.output, *writer.errors())
        return bool(left)

    def _parts(self, frame: Frame, features: FrameFeatures) -> list[CaptionedPart]:
        """Finds the parts of an image and describes each."""
        found = dense.caption_everything(
            self._captioner.model,
            features,
            count=self._options.count,
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
        if self._segmenter is None:
            return None
        grid = features.grid
        # Where cropping has cut the image off, there is nothing to describe.
        seen = dense.patch_mask(np.ones((grid.rows, grid.columns), dtype=bool), grid)
        found = proposals(frame, self._segmenter, ProposalOptions())
        masks = [item.mask for item in found if (item.mask & seen).any()]
        return masks[: self._options.count]


def similarity(
    features: FrameFeatures, vector: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Makes a heat map of the whole frame at a resolution worth storing.

    Args:
        features: Features of the frame.
        vector: Embedding of a text or a region, (D,).

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


def _chosen(
    ranges: Sequence[tuple[int, int]] | None, length: int, every: int
) -> list[int]:
    """Returns the frames to look at, each range from its first on."""
    return sorted(
        {
            number
            for start, stop in ranges or ((0, length),)
            for number in range(start, min(stop, length), every)
        }
    )
