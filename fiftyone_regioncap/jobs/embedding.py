"""The stage that embeds the regions of captions, whoever wrote these."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, ClassVar

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import EmbeddingSpace, RegionEmbedder
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.dataset import fields, schema
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.clips import iter_clips, iter_image_clips
from fiftyone_regioncap.dataset.embeddings import (
    REVISION,
    RegionEmbedding,
    write_embeddings,
)
from fiftyone_regioncap.dataset.store import Document
from fiftyone_regioncap.dataset.targets import Sample, Target, media_targets
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.jobs.base import RunContext
from fiftyone_regioncap.jobs.clips import ClipStage, OnText
from fiftyone_regioncap.jobs.options import EmbedRegionsOptions
from fiftyone_regioncap.jobs.summary import Report
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.video.clips import plan_clip

_ATTRIBUTES = ("index", "support", "caption", REVISION)


@dataclass
class EmbedSummary(Report):
    """Counts what the job did.

    Attributes:
        embedded: Number of regions that were embedded.
        kept: Number of regions that this model had embedded before.
        unseen: Number of captions without a region: of a deleted track, or an empty
            mask.
    """

    embedded: int = 0
    kept: int = 0
    unseen: int = 0

    def to_markdown(self) -> str:
        """Returns a few lines for people."""
        lines = [
            f"**{self.embedded}** regions of {self.samples} samples embedded in "
            f"{self.seconds:.1f} s"
        ]
        if self.kept:
            lines.append(f"- {self.kept} were embedded by this model before")
        if self.unseen:
            lines.append(f"- {self.unseen} captions have no region to look at")
        return "\n".join(lines + self.remarks())


class Embedding(ClipStage[EmbedRegionsOptions]):
    """Embeds the regions of captions; see :class:`Stage`.

    Regions that the same model embedded before are left alone, so that a job that was
    killed goes on where it stopped.

    Args:
        options: Which captions.
        captioner: A captioner that embeds regions.
        segmenter: Turns boxes and points of images into masks; without one a box is its
            own mask and points are an error of their image.
    """

    name: ClassVar[StageName] = "embed"
    options = EmbedRegionsOptions
    summary: ClassVar[type[Report]] = EmbedSummary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {
        "captioner": CAPTIONERS,
        "segmenter": PROPAGATORS,
    }
    find = media_targets
    output = None

    def __init__(
        self,
        options: EmbedRegionsOptions,
        captioner: RegionEmbedder,
        segmenter: Propagator | None = None,
    ) -> None:
        if not isinstance(captioner, RegionEmbedder):
            raise BackendError(
                "the captioner embeds no regions; take one that does: patchioner"
            )
        super().__init__(options)
        self._captioner = captioner
        self._segmenter = segmenter
        self._shown: frozenset[str] | None = None

    @classmethod
    def writes(cls, options: EmbedRegionsOptions) -> tuple[str, ...]:
        """Returns the field of the captions; see :meth:`Stage.writes`."""
        return (options.captions,)

    @classmethod
    def check(
        cls,
        options: EmbedRegionsOptions,
        samples: foco.SampleCollection,
        made: Collection[str],
    ) -> None:
        """Checks the fields of captions and tracks; see :meth:`Stage.check`."""
        dataset = CaptionField.of(samples, options.captions).dataset
        fields.require_writable(dataset, options.captions)
        _tracks(dataset, options)

    def declare(self, samples: foco.SampleCollection) -> None:
        """Declares the attributes of embeddings; see :meth:`Stage.declare`."""
        self._captions = CaptionField.of(samples, self._options.captions)
        dataset = self._captions.dataset
        self._tracks = _tracks(dataset, self._options)
        space = self._captioner.info.space
        if space is None:
            raise BackendError(
                f"{self._captioner.info.name} doesn't say what its embeddings are of; "
                "load it from its checkpoint, with embeddings=True"
            )
        self._space = space
        schema.declare_embeddings(dataset, self._options.captions)
        shown = self._captions.ids_in(samples)
        self._shown = None if shown is None else frozenset(shown)

    def infer(
        self, clips: Iterator[RegionClip], on_text: OnText
    ) -> Generator[NDArray[np.float32], None, None]:
        """Yields the embedding of each clip, in order."""
        while batch := list(islice(clips, self._captioner.info.batch_size)):
            yield from self._captioner.embed(batch)

    def count(self, result: Any, context: RunContext) -> None:
        """Does nothing: embeddings are counted when they are written."""

    def record(self) -> dict[str, Any]:
        """Fields and space of the embeddings; see :meth:`Stage.record`."""
        return {
            "captions": self._options.captions,
            "tracks": self._tracks,
            "space": asdict(self._space),
        }

    def prepare(
        self, target: Target, sample: Sample, context: RunContext
    ) -> _EmbedWork:
        """Returns the regions that this model has not embedded yet."""
        todo: dict[str, Document] = {}
        kept = 0
        query = {"_id": sample._id}
        for _, labels in self._captions.documents(_ATTRIBUTES, query=query):
            for label in labels:
                label_id = str(label["_id"])
                hidden = self._shown is not None and label_id not in self._shown
                if not label.get("caption") or hidden:
                    continue
                same = label.get(REVISION) == self._space.fingerprint
                if same and not self._options.overwrite:
                    kept += 1
                else:
                    todo[label_id] = label
        context.count(kept=kept)
        return _EmbedWork(
            sample,
            self._captions,
            self._tracks,
            self._space,
            todo,
            self._captioner.info.frames,
            self._segmenter,
            context,
        )


@dataclass(frozen=True)
class _EmbedWork:
    """The captions of one sample; see :class:`ClipWork`."""

    sample: Sample
    captions: CaptionField
    tracks: str | None
    space: EmbeddingSpace
    labels: dict[str, Document]
    frames: int
    segmenter: Propagator | None
    context: RunContext
    written: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of regions."""
        return len(self.labels)

    def clips(self) -> Iterator[tuple[str, RegionClip]]:
        """Yields the regions by label id."""
        if self.tracks is not None:
            yield from _video_clips(self.sample, self.tracks, self.labels, self.frames)
        elif self.labels:
            name, ids = self.captions.name, set(self.labels)
            for region, clip in iter_image_clips(
                self.sample, name, ids, self.segmenter
            ):
                if clip.problem is None:
                    yield region.id, clip
                else:
                    self.problems[region.id] = clip.problem

    def write(self, results: Sequence[tuple[str, NDArray[np.float32]]]) -> None:
        """Writes embeddings onto the labels."""
        found = {
            label_id: embedding
            for label_id, vector in results
            if (embedding := RegionEmbedding.of(vector, self.space)) is not None
        }
        write_embeddings(self.sample, self.captions.labels, found)
        self.context.count(embedded=len(found))
        # Not out of the labels, of which clips that are left are made after an outage.
        self.written.update(found)

    def finish(self) -> None:
        """Says which regions failed, and counts captions without a region."""
        for problem in self.problems.values():
            self.context.failed_in_part("embed", self.sample, problem)
        seen = self.written | self.problems.keys()
        self.context.count(unseen=len(self.labels.keys() - seen))


def _video_clips(
    sample: Sample, tracks: str, labels: Mapping[str, Document], frames: int
) -> Iterator[tuple[str, RegionClip]]:
    """Yields label ids with their tracks' windows."""
    if not labels:
        return
    known = {track.object_id: track for track in read_tracks(sample, tracks)}
    wanted: dict[tuple[int, tuple[int, int]], list[str]] = {}
    plans = []
    for label_id, label in labels.items():
        track = known.get(-1 if label.get("index") is None else label["index"])
        if track is None:
            continue
        first, last = label["support"]
        support = first - 1, last - 1
        if not ((track.frames >= support[0]) & (track.frames <= support[1])).any():
            continue
        own = wanted.setdefault((track.object_id, support), [])
        plans += [] if own else [plan_clip(track, support, frames)]
        own.append(label_id)
    for plan, clip in iter_clips(sample, tracks, plans):
        for label_id in wanted[plan.track.object_id, plan.support]:
            yield label_id, clip


def _tracks(dataset: fo.Dataset, options: EmbedRegionsOptions) -> str | None:
    """Returns the field of the tracks that captions are of; None for images.

    Raises:
        FieldError: When there is none.
    """
    if dataset.media_type == fom.IMAGE:
        return None
    found = options.tracks or next(iter(fields.track_fields(dataset)), "")
    return fields.require_tracks(dataset, found or fields.TRACKS)
