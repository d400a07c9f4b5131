"""A job that embeds the regions of captions, whoever wrote these."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

import fiftyone.core.collections as foco
import fiftyone.core.media as fom

from fiftyone_regioncap.captioning.base import EmbeddingSpace, RegionEmbedder
from fiftyone_regioncap.core.errors import BackendError, Cancelled
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.dataset import fields, runs, schema
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.embeddings import (
    REVISION,
    RegionEmbedding,
    write_embeddings,
)
from fiftyone_regioncap.dataset.regions import read_regions
from fiftyone_regioncap.dataset.store import Document
from fiftyone_regioncap.dataset.targets import (
    Sample,
    image_targets,
    name_of,
    video_targets,
)
from fiftyone_regioncap.dataset.tracks import read_masks, read_tracks
from fiftyone_regioncap.jobs.images import read_image, region_masks
from fiftyone_regioncap.jobs.ledger import Failure, Report
from fiftyone_regioncap.video.clips import assemble, plan_clip
from fiftyone_regioncap.video.reader import VideoReader

logger = logging.getLogger(__name__)

_ATTRIBUTES = ("index", "support", "caption", REVISION)


@dataclass
class EmbedSummary(Report):
    """What the job did.

    Attributes:
        embedded: regions.
        kept: regions that this model had embedded before.
        unseen: captions without a region to look at: a track that is gone, an empty
            mask.
    """

    embedded: int = 0
    kept: int = 0
    unseen: int = 0

    def to_markdown(self) -> str:
        """A few lines for people."""
        lines = [
            f"**{self.embedded}** regions of {self.samples} samples embedded in "
            f"{self.seconds:.1f} s"
        ]
        if self.kept:
            lines.append(f"- {self.kept} were embedded by this model before")
        if self.unseen:
            lines.append(f"- {self.unseen} captions have no region to look at")
        return "\n".join(lines + self.remarks())


def run(
    samples: foco.SampleCollection,
    name: str,
    tracks: str | None,
    embedder: RegionEmbedder,
    *,
    overwrite: bool = False,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> EmbedSummary:
    """Embeds the regions of captions.

    Regions that the same model embedded before are left alone, so that a job that was
    killed goes on where it stopped.

    Args:
        samples: videos or images: a dataset or a view; only captions in it are done.
        name: field of the captions.
        tracks: of a video's tracks; not needed for images.
        embedder: with a space of its own.
        overwrite: whether to embed regions again that this model has embedded.
        listener: is told how far the job is.
        cancel: set it to stop the job after the batch at hand.

    Returns:
        what was done, failures included.

    Raises:
        FieldError: when a field is absent or of the wrong kind; nothing is written.
        BackendError: when the embedder doesn't say what its vectors are of.
        Cancelled: when ``cancel`` was set; what was written stays.
    """
    captions = CaptionField.of(samples, name)
    images = captions.dataset.media_type == fom.IMAGE
    if not images:
        tracks = fields.require_tracks(captions.dataset, tracks or fields.TRACKS)
    space = embedder.info.space
    if space is None:
        raise BackendError(
            f"{embedder.info.name} doesn't say what its embeddings are of; load it "
            "from its checkpoint, with embeddings=True"
        )
    schema.declare_embeddings(captions.dataset, name)
    targets = image_targets(samples) if images else video_targets(samples)
    shown = captions.ids_in(samples)
    allowed = None if shown is None else frozenset(shown)
    summary = EmbedSummary(samples=len(targets))
    reporter = ProgressReporter(["embed"], len(targets), listener, cancel)
    began = time.monotonic()
    for _, sample in targets.samples():
        try:
            todo = _todo(captions, sample, space, allowed, overwrite, summary)
            clips = (
                _image_clips(sample, name, todo)
                if images
                else _video_clips(sample, str(tracks), todo, embedder.info.frames)
            )
            done = 0
            while batch := list(islice(clips, embedder.info.batch_size)):
                vectors = embedder.embed([clip for _, clip in batch])
                found = {
                    label_id: embedding
                    for (label_id, _), vector in zip(batch, vectors, strict=True)
                    if (embedding := RegionEmbedding.of(vector, space)) is not None
                }
                write_embeddings(sample, captions.labels, found)
                summary.embedded += len(found)
                done += len(batch)
                reporter.update("embed", name_of(sample), done, len(todo))
                todo = {k: v for k, v in todo.items() if k not in found}
            summary.unseen += len(todo)
        except Cancelled:
            raise
        except Exception as error:
            logger.warning("%s: %s", sample.filepath, error, exc_info=error)
            message = f"{type(error).__name__}: {error}"
            summary.failures.append(
                Failure(sample.id, sample.filepath, "embed", message)
            )
        reporter.finish("embed", name_of(sample))
    summary.seconds = time.monotonic() - began
    summary.run = runs.run_key("embed_regions")
    config = {"captions": name, "tracks": tracks, "space": asdict(space)}
    results = {"summary": summary.to_dict()}
    runs.record_run(captions.dataset, summary.run, config, results)
    return summary


def _todo(
    captions: CaptionField,
    sample: Sample,
    space: EmbeddingSpace,
    allowed: frozenset[str] | None,
    overwrite: bool,
    summary: EmbedSummary,
) -> dict[str, Document]:
    """Labels of a sample whose regions are to be embedded, by id."""
    todo: dict[str, Document] = {}
    query = {"_id": sample._id}
    for _, labels in captions.documents(_ATTRIBUTES, query=query):
        for label in labels:
            label_id = str(label["_id"])
            if not label.get("caption") or not (allowed is None or label_id in allowed):
                continue
            if label.get(REVISION) == space.fingerprint and not overwrite:
                summary.kept += 1
            else:
                todo[label_id] = label
    return todo


def _video_clips(
    sample: Sample, tracks: str, labels: Mapping[str, Document], frames: int
) -> Iterator[tuple[str, RegionClip]]:
    """Label ids and their tracks' windows."""
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
    with VideoReader(sample.filepath) as reader:
        masks = partial(read_masks, sample, tracks)
        for plan, clip in assemble(plans, reader.read, masks, reader.fps):
            for label_id in wanted[plan.track.object_id, plan.support]:
                yield label_id, clip


def _image_clips(
    sample: Sample, name: str, labels: Mapping[str, Document]
) -> Iterator[tuple[str, RegionClip]]:
    """Label ids and their regions on the image."""
    if not labels:
        return
    image = read_image(sample.filepath)
    height, width = image.shape[:2]
    regions = [
        region
        for region in read_regions(sample, name, height=height, width=width)
        if region.id in labels
    ]
    for region, mask in zip(regions, region_masks(image, regions, None), strict=True):
        yield region.id, RegionClip([image], [mask], label=region.label)
