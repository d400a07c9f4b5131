"""The stage that captions the regions of images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fiftyone.core.collections as foco

from fiftyone_regioncap.captioning.base import Captioner, CaptionerInfo
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import Caption, RegionClip
from fiftyone_regioncap.dataset import fields, schema, status
from fiftyone_regioncap.dataset.clips import iter_image_clips
from fiftyone_regioncap.dataset.regions import region_records, write_region_captions
from fiftyone_regioncap.dataset.targets import Sample, Target, image_targets
from fiftyone_regioncap.jobs.base import RunContext
from fiftyone_regioncap.jobs.clips import ClipStage
from fiftyone_regioncap.jobs.options import RegionOptions
from fiftyone_regioncap.jobs.summary import Report, Summary
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.propagation.registry import PROPAGATORS


class RegionCaptioning(ClipStage[RegionOptions]):
    """Captions the regions of images; see :class:`Stage`.

    Args:
        options: Options of the captioning.
        captioner: The captioner.
        segmenter: Turns boxes and points into masks; without one a box is its own mask
            and points are an error of their image.
    """

    name: ClassVar[StageName] = "caption"
    options = RegionOptions
    summary: ClassVar[type[Report]] = Summary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {
        "captioner": CAPTIONERS,
        "segmenter": PROPAGATORS,
    }
    find = image_targets

    def __init__(
        self,
        options: RegionOptions,
        captioner: Captioner,
        segmenter: Propagator | None = None,
    ) -> None:
        super().__init__(options)
        self._captioner = captioner
        self._segmenter = segmenter

    @classmethod
    def writes(cls, options: RegionOptions) -> tuple[str, ...]:
        """Returns the field of the regions; see :meth:`Stage.writes`."""
        return (options.field,)

    @property
    def output(self) -> str:
        """Field of the regions."""
        return self._options.field

    @classmethod
    def check(
        cls,
        options: RegionOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the field of the regions; see :meth:`Stage.check`."""
        dataset = samples._dataset
        fields.require_writable(dataset, fields.require_regions(dataset, options.field))

    def declare(self, samples: foco.SampleCollection) -> None:
        """Declares the attributes of the captions; see :meth:`Stage.declare`."""
        dataset, field = samples._dataset, self._options.field
        self._captioner.info.check_prompt(self._options.prompt)
        schema.declare_regions(dataset, field)
        schema.declare_status(dataset, field)

    def prepare(
        self, target: Target, sample: Sample, context: RunContext
    ) -> _RegionWork | None:
        """Returns the regions that have no caption yet."""
        options = self._options
        known = region_records(sample, options.field)
        replaced, edited_too = options.overwrite, options.overwrite_edited
        todo = [
            label_id
            for label_id, record in known.items()
            if not record.caption
            or (
                record.model
                and replaced
                and (record.review == "unreviewed" or edited_too)
            )
        ]
        if not todo:
            return None
        return _RegionWork(
            sample,
            options,
            self._captioner.info,
            self._segmenter,
            frozenset(todo),
            len(known),
        )


@dataclass(frozen=True)
class _RegionWork:
    """The regions of one image; see :class:`ClipWork`."""

    sample: Sample
    options: RegionOptions
    info: CaptionerInfo
    segmenter: Propagator | None
    ids: frozenset[str]
    known: int
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of regions."""
        return len(self.ids)

    def clips(self) -> Iterator[tuple[str, RegionClip]]:
        """Yields the regions by label id."""
        field = self.options.field
        for region, clip in iter_image_clips(
            self.sample, field, self.ids, self.segmenter
        ):
            yield region.id, clip

    def write(self, results: Sequence[tuple[str, Caption]]) -> None:
        """Writes captions onto the regions."""
        self.errors.update({i: c.error for i, c in results if c.error is not None})
        write_region_captions(
            self.sample,
            self.options.field,
            dict(results),
            model=self.info.model,
            space=self.info.space,
        )

    def finish(self) -> None:
        """Records whether all regions have captions."""
        errors = list(self.errors.values())
        status.settle(self.sample, self.options.field, errors, self.known)
