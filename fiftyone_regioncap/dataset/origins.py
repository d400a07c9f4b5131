"""Knows what tracks and captions were made from, and who changed the tracks since.

The field ``<field>_origin`` keeps a text for each object and range. Jobs compare these
texts with what they would make: what was made from the same is passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import fiftyone as fo

from fiftyone_regioncap.core.errors import VideoError
from fiftyone_regioncap.dataset import status
from fiftyone_regioncap.dataset.captions import Key
from fiftyone_regioncap.dataset.metadata import file_digest
from fiftyone_regioncap.dataset.status import Kept
from fiftyone_regioncap.dataset.store import stable_id

_EDITED = "edited-"
"""Begins the last part of the origin of a track that a person has changed."""

GONE = "gone"
"""Stands for the video file of a track that a person left no label of."""

_CAPTION = "caption"
"""Begins the origin of a caption; in older datasets there are origins of tracks."""


@dataclass(frozen=True)
class TrackOrigin:
    """What the track of an object was made from over a range.

    Attributes:
        prompts: Hash of the object's prompts; empty where a person made the track of
            others, by splitting or renumbering them.
        made_by: Hash of the model, its options and the file; empty where no job has
            finished it.
        content: Hash that is another one whenever the track is, so that captions of
            it are made anew.
        edited: Hash of the video file when a person last split, merged, renumbered or
            deleted the track, empty if it could not be read, :data:`GONE` if no label
            was left; None if nobody did.
        begun: Whether it is being made, or has lost labels to another job.
    """

    prompts: str = ""
    made_by: str = ""
    content: str = ""
    edited: str | None = None
    begun: bool = False

    @classmethod
    def parse(cls, text: str) -> TrackOrigin:
        """Returns the inverse of ``str``."""
        begun = text.startswith(status.BEGUN)
        parts = text.removeprefix(status.BEGUN).split(":")
        prompts, made_by = parts[:2] if len(parts) > 2 else ("", "")
        content, edited = parts[-1], None
        if content.startswith(_EDITED):
            edited, _, content = content.removeprefix(_EDITED).partition("-")
        return cls(prompts, made_by, content, edited, begun)

    def __str__(self) -> str:
        """Returns it as the field keeps it."""
        mark = "" if self.edited is None else f"{_EDITED}{self.edited}-"
        begun = status.BEGUN if self.begun else ""
        return f"{begun}{self.prompts}:{self.made_by}:{mark}{self.content}"

    @property
    def of_others(self) -> bool:
        """Whether a person made the track of other tracks, so that it has no prompt."""
        return self.edited is not None and not self.prompts


@dataclass(frozen=True)
class CaptionOrigin:
    """What a caption was made from.

    Attributes:
        span: The range that was asked for: ``"all"``, or a clip's ``start-stop``.
        made_from: Hash of all that the caption depends on; empty where its track got
            another number since.
    """

    span: str
    made_from: str

    def __str__(self) -> str:
        """Returns it as the field keeps it."""
        return f"{_CAPTION}:{self.span}:{self.made_from}"


def read_tracks(kept: Kept) -> dict[str, TrackOrigin]:
    """Returns the origins of tracks, finished or not, by :func:`status.origin_key`."""
    both = {**kept.origins, **kept.begun}
    return {key: TrackOrigin.parse(text) for key, text in both.items()}


def read_captions(kept: Kept) -> dict[Key, CaptionOrigin]:
    """Returns the origins of captions, by object and support."""
    found = {}
    for key, text in kept.origins.items():
        kind, *parts = text.split(":")
        start, stop = status.origin_range(key)
        if kind == _CAPTION and stop is not None:
            number = status.origin_object(key)
            found[number, (start, stop - 1)] = CaptionOrigin(*parts)
    return found


def write_captions(
    sample: fo.Sample | fo.SampleView,
    field: str,
    origins: Mapping[Key, CaptionOrigin | None],
) -> None:
    """Records what captions were made from; None forgets it.

    Args:
        sample: Sample of a dataset.
        field: Field of the captions.
        origins: Origins by object and support; those of other captions stay.
    """
    texts = {
        status.origin_key(index, first, last + 1): None
        if origin is None
        else str(origin)
        for (index, (first, last)), origin in origins.items()
    }
    status.write_origins(sample, field, texts)


def move_captions(
    sample: fo.Sample | fo.SampleView, field: str, moved: Mapping[Key, int | None]
) -> None:
    """Lets the origins of captions follow them to other objects.

    Args:
        sample: Sample of a dataset.
        field: Field of the captions.
        moved: Objects of captions by now; None for a caption that is gone.
    """
    known = read_captions(status.read_kept(sample, field))
    anew: dict[Key, CaptionOrigin | None] = dict.fromkeys(known.keys() & moved.keys())
    for key in [*anew]:
        number, support = moved[key], key[1]
        if number is not None and (number, support) not in known:
            anew[number, support] = replace(known[key], made_from="")
    write_captions(sample, field, anew)


def withdraw(sample: fo.Sample | fo.SampleView, field: str, object_id: int) -> Kept:
    """Records that a finished track is not whole until a correction is made.

    Args:
        sample: Sample of a dataset.
        field: Field of the tracks, with or without ``frames.`` in front.
        object_id: Number of the object.

    Returns:
        What the sample kept before.
    """
    kept = status.read_kept(sample, field)
    begun = {
        key: str(replace(origin, begun=True))
        for key, origin in read_tracks(kept).items()
        if status.origin_object(key) == object_id and not origin.begun
    }
    status.write_origins(sample, field, begun)
    return kept


def correct(
    sample: fo.Sample | fo.SampleView, field: str, object_id: int, content: str
) -> None:
    """Records that a track that was withdrawn is whole, and another one.

    What it was made from at first stays recorded, so that a job that propagates the
    prompts of the video passes over it.

    Args:
        sample: Sample of a dataset.
        field: Field of the tracks, with or without ``frames.`` in front.
        object_id: Number of the object.
        content: Hash of what it was corrected by.
    """
    corrected = {
        key: str(replace(origin, begun=False, content=content))
        for key, origin in read_tracks(status.read_kept(sample, field)).items()
        if status.origin_object(key) == object_id
        and origin.begun
        # What a job began to make, and did not finish, is still to be made.
        and (origin.made_by or origin.of_others)
    }
    status.write_origins(sample, field, corrected)


def edit(
    sample: fo.Sample | fo.SampleView,
    field: str,
    affected: Collection[int],
    there: Collection[int],
) -> None:
    """Records that a person has changed tracks, whose captions are then made anew.

    Jobs leave such tracks as they are while their prompts are the same.

    Args:
        sample: Sample of a dataset.
        field: Field of the tracks, with or without ``frames.`` in front.
        affected: Numbers of the objects that gained or lost labels.
        there: Numbers of the objects that have labels by now.
    """
    kept = status.read_kept(sample, field)
    if not kept.objects:  # others made the tracks
        return
    try:
        file = file_digest(sample.filepath)
    except VideoError:
        file = ""
    known = read_tracks(kept)
    for number in set(affected) & set(there) - kept.objects:
        known[status.origin_key(number)] = TrackOrigin()
    edited = {}
    for key, origin in known.items():
        number = status.origin_object(key)
        gone = number not in there
        # What is left of a track that was not finished is made anew.
        finished = not origin.begun or (gone and origin.prompts)
        if number in affected and finished:
            content = str(stable_id(origin, *sorted(affected)))
            mark = GONE if gone else file
            changed = replace(origin, begun=False, edited=mark, content=content)
            edited[key] = str(changed)
    status.write_origins(sample, field, edited)
