"""Says before a job what it would write, keep and replace, and how long it may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fiftyone.core.collections as foco
from fiftyone import ViewField as F

from fiftyone_regioncap.dataset.fields import frames_field
from fiftyone_regioncap.dataset.schema import status_field
from fiftyone_regioncap.dataset.store import FRAMES_PREFIX, frame_path
from fiftyone_regioncap.jobs import costs
from fiftyone_regioncap.jobs.options import (
    CaptionOptions,
    PropagateOptions,
    ProposeOptions,
    ShotOptions,
)

COUNTED = 2_000
"""Number of videos up to which objects are counted."""


@dataclass(frozen=True)
class Preview:
    """What a job would do.

    Attributes:
        videos: Number of videos in its scope.
        objects: Number of objects; None where there are too many videos to count.
        frames: Number of frames of the videos; 0 where that is unknown.
        seconds: Estimated duration; None where the models were never timed here.
        lines: Sentences on what is written, kept and replaced.
    """

    videos: int
    objects: int | None
    frames: int
    seconds: float | None
    lines: tuple[str, ...]

    def to_markdown(self) -> str:
        """Returns it as Markdown, for a form."""
        parts = [_count(self.videos, "video")]
        if self.objects is not None:
            parts.append(_count(self.objects, "object"))
        if self.frames:
            parts.append(_count(self.frames, "frame"))
        if self.seconds is not None:
            parts.append(f"about {duration(self.seconds)} on this machine")
        return "\n".join(
            [f"**{', '.join(parts)}**", "", *(f"- {s}" for s in self.lines)]
        )


def duration(seconds: float) -> str:
    """Returns a duration in words, roughly."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def preview(
    samples: foco.SampleCollection,
    propagate: PropagateOptions | None = None,
    caption: CaptionOptions | None = None,
    models: Mapping[str, str] | None = None,
    *,
    propose: ProposeOptions | None = None,
    find_shots: ShotOptions | None = None,
) -> Preview:
    """Looks at what there is, without reading masks or videos.

    Args:
        samples: Videos: a dataset or a view.
        propagate: Options of the propagation; None for none.
        caption: Options of the captioning; None for none.
        models: Names of the models by stage, such as ``{"caption": "dam-video"}``.
        propose: Options of finding objects; None for none.
        find_shots: Options of finding shots; None for none.
    """
    videos = len(samples)
    frames = int(samples.sum("metadata.total_frame_count") or 0)
    tracks = propagate.output if propagate is not None else None
    source = propagate.prompts if propagate is not None else None
    if caption is not None:
        source, tracks = source or caption.tracks, tracks or caption.tracks
    objects = None
    if source is not None and videos <= COUNTED:
        objects = _objects(samples, source)
    lines = []
    anew = samples
    for options in (propose, find_shots, propagate):
        if options is not None:
            anew, line = _made(samples, options)
            lines.append(line)
    if caption is not None:
        lines.append(_captions(samples, anew, caption, propagate is not None))
        if propagate is None and not caption.overwrite:
            anew = _incomplete(samples, caption.output)
    share = len(anew) / max(videos, 1)
    seconds = _seconds(models or {}, frames * share, (objects or 0) * share)
    return Preview(videos, objects, frames, seconds, tuple(lines))


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _incomplete(samples: foco.SampleCollection, output: str) -> foco.SampleCollection:
    """Returns the samples that no job has completed."""
    status = status_field(output)
    if not samples._root_dataset.has_field(status):
        return samples
    return samples.match(F(status) != "complete")


def _seconds(models: Mapping[str, str], frames: float, objects: float) -> float | None:
    """Returns the estimated duration; None where nothing is known or to be done."""
    units = {"propagate": frames, "caption": objects}
    total = 0.0
    for stage, model in models.items():
        cost = costs.measured_cost(stage, model)
        if cost is None or stage not in units:
            return None
        total += cost * units[stage]
    return total or None


def _objects(samples: foco.SampleCollection, field: str) -> int:
    """Counts objects: labels of a sample with one index, else one instance."""
    kind = samples.get_field(field)
    inner = getattr(getattr(kind, "document_type", None), "_LABEL_LIST_FIELD", None)
    if inner is None:
        return 0
    path = f"{frame_path(field)}.{inner}"
    frames = field.startswith(FRAMES_PREFIX)
    label = f"$frames.{path}" if frames else f"${path}"
    key = {"$ifNull": [f"{label}.index", f"{label}.instance._id", f"{label}._id"]}
    steps: list[dict[str, Any]] = [{"$unwind": "$frames"}] if frames else []
    steps += [
        {"$unwind": label},
        {"$group": {"_id": ["$_id", key]}},
        {"$count": "objects"},
    ]
    found = samples._aggregate(attach_frames=frames, post_pipeline=steps)
    return next((document["objects"] for document in found), 0)


_MADE = {
    ProposeOptions: ("Prompts", "options and model are"),
    ShotOptions: ("Shots", "options are"),
    PropagateOptions: ("Tracks", "prompts and model are"),
}
"""What stages on videos write, and what must be the same for it to be kept."""


def _made(
    samples: foco.SampleCollection,
    options: ProposeOptions | ShotOptions | PropagateOptions,
) -> tuple[foco.SampleCollection, str]:
    """Returns the samples on which labels are made, and a sentence."""
    dataset = samples._root_dataset
    what, same = _MADE[type(options)]
    shots = isinstance(options, ShotOptions)
    name = options.output if shots else frames_field(options.output)
    status = status_field(options.output)
    if not dataset.has_field(name) or not dataset.has_field(status):
        return samples, f"{what}: written to the new field `{name}`"
    undone = _incomplete(samples, options.output)
    complete = len(samples) - len(undone)
    # Of prompts and shots all that a person edited stays, and is said to be in the way.
    replaced = getattr(options, "overwrite_edited", shots and options.overwrite)
    edited = "" if replaced else "; labels that a person edited stay"
    if not complete:
        return samples, f"{what}: written to `{name}`{edited}"
    if options.overwrite:
        again = f"{_count(complete, 'complete video')} of `{name}` made again{edited}"
        return samples, f"{what}: {again}"
    return undone, (
        f"{what}: {_count(complete, 'complete video')} of `{name}` kept as far as "
        f"{same} the same, {len(undone):,} to do{edited}"
    )


def _captions(
    samples: foco.SampleCollection,
    anew: foco.SampleCollection,
    options: CaptionOptions,
    tracks_too: bool,
) -> str:
    """Returns a sentence on the captions that are there."""
    name = options.output
    labels = f"{name}.detections"
    if not samples._root_dataset.has_field(name):
        return f"Captions: written to the new field `{name}`"
    there = samples.count(labels)
    if not there:
        return f"Captions: written to `{name}`"
    reviewed = _reviewed(samples, labels)
    kept = f"; {reviewed:,} reviewed ones kept" if reviewed else ""
    replaced = there - reviewed
    if options.overwrite:
        if options.overwrite_edited:
            return f"Captions: all {there:,} in `{name}` replaced, reviewed ones too"
        return f"Captions: {replaced:,} of {there:,} in `{name}` replaced{kept}"
    replaced = anew.count(labels) - _reviewed(anew, labels) if tracks_too else 0
    if replaced:
        return (
            f"Captions: {replaced:,} of {there:,} in `{name}` replaced, as their "
            f"tracks are made anew{kept}"
        )
    return (
        f"Captions: {there:,} in `{name}` kept, except where their track or window is "
        f"another by now{kept}"
    )


def _reviewed(samples: foco.SampleCollection, labels: str) -> int:
    counts = samples.count_values(f"{labels}.review")
    return sum(n for review, n in counts.items() if review not in (None, "unreviewed"))
