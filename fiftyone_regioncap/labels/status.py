"""How far a sample has come, so that a killed job goes on where it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import fiftyone as fo
import fiftyone.core.clips as foc
from fiftyone import ViewField as F

from fiftyone_regioncap.labels.fields import Collection
from fiftyone_regioncap.labels.schema import declare_status
from fiftyone_regioncap.labels.store import Store, frame_path

State: TypeAlias = Literal["complete", "partial", "failed"]
"""``partial`` from the first write on, ``complete`` or ``failed`` as the last one."""


@dataclass(frozen=True)
class Status:
    """How far a sample has come.

    Attributes:
        state: None when no job has touched it.
        error: the first error; None when there was none.
    """

    state: State | None
    error: str | None = None


def status_field(field: str) -> str:
    """The sample-level field with the state of a field: ``<field>_status``."""
    return f"{frame_path(field)}_status"


def error_field(field: str) -> str:
    """The sample-level field with the first error of a field: ``<field>_error``."""
    return f"{frame_path(field)}_error"


def write_status(
    sample: fo.Sample | fo.SampleView,
    field: str,
    state: State,
    error: str | None = None,
) -> None:
    """Records how far a sample has come; call it after everything else is written.

    Args:
        sample: in a dataset; a clip's status is kept with its video.
        field: of tracks or captions, with or without ``frames.`` in front.
        state: how far.
        error: the first error.

    Raises:
        FieldError: when the status field exists with another type.
    """
    store = Store.of(sample)
    declare_status(store.dataset, status_field(field), error_field(field))
    store.write_sample({status_field(field): state, error_field(field): error})


def read_status(sample: fo.Sample | fo.SampleView, field: str) -> Status:
    """How far a sample has come with a field."""
    document = Store.of(sample).sample_document(status_field(field), error_field(field))
    state = cast("State | None", document.get(status_field(field)))
    return Status(state, document.get(error_field(field)))


def done(view: Collection, field: str) -> set[str]:
    """Ids of the samples whose field is complete.

    Args:
        view: of samples; of clips, the ids are those of their videos.
        field: of tracks or captions, with or without ``frames.`` in front.
    """
    dataset = view._root_dataset
    if not dataset.has_sample_field(status_field(field)):
        return set()
    key = "sample_id" if isinstance(view, foc.ClipsView) else "id"
    complete = dataset.match(F(status_field(field)) == "complete").values("id")
    return set(complete) & set(view.values(key))
