"""Records the status of samples, so that jobs do what is missing or outdated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import fiftyone as fo
import fiftyone.core.clips as foc
from fiftyone import ViewField as F

from fiftyone_regioncap.dataset.fields import Collection
from fiftyone_regioncap.dataset.schema import (
    declare_origins,
    declare_status,
    error_field,
    origin_field,
    status_field,
)
from fiftyone_regioncap.dataset.store import Store, frame_path

State: TypeAlias = Literal["complete", "partial", "failed"]
"""``partial`` from the first write on, ``complete`` or ``failed`` as the last one."""

Span: TypeAlias = tuple[int, int | None]
"""A range [start, stop) of 0-based frames; None means the end of the video."""

SEARCH = 0
"""Stands for an object where labels are of a search for all objects, or shots."""


@dataclass(frozen=True)
class Status:
    """Status of a sample with regard to one field.

    Attributes:
        state: State of the last job on it; None when there was none.
        error: First error; None when there was none.
    """

    state: State | None
    error: str | None = None


@dataclass(frozen=True)
class Kept:
    """What a sample keeps of the jobs on one field.

    Attributes:
        status: Status of the sample.
        origins: Known origins of finished labels of objects, by :func:`origin_key`.
        begun: Those that begin with :data:`BEGUN`, of labels that were not finished or
            of which another job replaced some.
    """

    status: Status
    origins: Mapping[str, str]
    begun: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether the last job has completed the sample."""
        return self.status.state == "complete"

    @property
    def objects(self) -> set[int]:
        """Numbers of the objects of which something is known."""
        return {origin_object(key) for key in (*self.origins, *self.begun)}

    def searched(self, span: Span, origin: str) -> bool:
        """Returns whether a range was searched for just what is searched for now.

        What nothing says the origin of was searched when its sample is complete.

        Args:
            span: The range.
            origin: Hash of all that what is found depends on.
        """
        if not (self.origins or self.begun):
            return self.complete
        return self.origins.get(origin_key(SEARCH, *span)) == origin

    def overlapping(self, span: Span) -> list[str]:
        """Returns the keys of finished labels of ranges that share frames with one."""
        return [key for key in self.origins if ranges_overlap(origin_range(key), span)]


def write_status(
    sample: fo.Sample | fo.SampleView,
    field: str,
    state: State,
    error: str | None = None,
) -> None:
    """Records the status of a sample; call it after everything else is written.

    Args:
        sample: Sample of a dataset; a clip's status is kept with its video.
        field: Field of tracks or captions, with or without ``frames.`` in front.
        state: State of the job on the sample.
        error: First error; None for none.

    Raises:
        FieldError: When the status field exists with another type.
    """
    store = Store.of(sample)
    if store.dataset.get_field(error_field(field)) is None:
        declare_status(store.dataset, field)
    values = {status_field(field): state, error_field(field): error}
    store.write_sample(values, under=frame_path(field))


def settle(
    sample: fo.Sample | fo.SampleView, field: str, errors: Sequence[str], total: int
) -> None:
    """Records the state of a sample whose labels were made, some with an error.

    Args:
        sample: Sample of a dataset.
        field: Field of the labels.
        errors: Errors of labels.
        total: Number of labels.
    """
    state: State = "complete"
    if errors:
        state = "failed" if len(errors) >= total else "partial"
    write_status(sample, field, state, errors[0] if errors else None)


def read_status(sample: fo.Sample | fo.SampleView, field: str) -> Status:
    """Reads the status of a sample with regard to a field."""
    return read_kept(sample, field).status


def read_kept(sample: fo.Sample | fo.SampleView, field: str) -> Kept:
    """Reads the status of a sample and the origins of its labels in one trip."""
    names = status_field(field), error_field(field), origin_field(field)
    document = Store.of(sample).sample_document(*names)
    state, error, origins = map(document.get, names)
    known: dict[str, str] = {}
    begun: dict[str, str] = {}
    for key, made in (origins or {}).items():
        if made:
            (begun if made.startswith(BEGUN) else known)[key] = made
    return Kept(Status(cast("State | None", state), error), known, begun)


BEGUN = "begun:"
"""Begins what stands for an origin while the labels are made."""


def origin_key(object_id: int, start: int = 0, stop: int | None = None) -> str:
    """Returns the key under which an object's origin is kept.

    Args:
        object_id: Id of the object.
        start: First frame of interest of the job, 0-based.
        stop: One past the last frame of interest; None means the end.
    """
    whole = start == 0 and stop is None
    return str(object_id) if whole else f"{object_id}:{start}-{stop}"


def origin_object(key: str) -> int:
    """Returns the object id of an :func:`origin_key`."""
    return int(key.partition(":")[0])


def origin_range(key: str) -> Span:
    """Returns the range [start, stop) of an :func:`origin_key`; None means the end."""
    start, _, stop = key.partition(":")[2].partition("-")
    return int(start or 0), None if stop in ("", "None") else int(stop)


def ranges_overlap(one: Span, other: Span) -> bool:
    """Returns whether two ranges have a frame in common."""
    return all(
        stop is None or start < stop
        for (start, _), (_, stop) in ((one, other), (other, one))
    )


def is_inside(frame: int, spans: Sequence[Span]) -> bool:
    """Returns whether a 0-based frame is in one of some ranges."""
    return any(
        start <= frame and (stop is None or frame < stop) for start, stop in spans
    )


def write_origins(
    sample: fo.Sample | fo.SampleView, field: str, origins: Mapping[str, str | None]
) -> None:
    """Records what objects' labels were made from; other objects keep theirs.

    Args:
        sample: Sample of a dataset; a clip's origins are kept with its video.
        field: Field of tracks or captions, with or without ``frames.`` in front.
        origins: What they were made from, by :func:`origin_key`; None where nothing
            is known any more.

    Raises:
        FieldError: When the field for it exists with another type.
    """
    if not origins:  # of tracks that others made
        return
    store = Store.of(sample)
    name = origin_field(field)
    if store.dataset.get_field(name) is None:
        declare_origins(store.dataset, field)
    values = {f"{name}.{key}": value for key, value in origins.items()}
    store.write_sample(values, under=frame_path(field))


def done(view: Collection, field: str) -> set[str]:
    """Returns the ids of the samples whose field is complete.

    Args:
        view: View of samples; of clips, the ids are those of their videos.
        field: Field of tracks or captions, with or without ``frames.`` in front.
    """
    dataset = view._root_dataset
    if not dataset.has_sample_field(status_field(field)):
        return set()
    key = "sample_id" if isinstance(view, foc.ClipsView) else "id"
    complete = dataset.match(F(status_field(field)) == "complete").values("id")
    return set(complete) & set(view.values(key))
