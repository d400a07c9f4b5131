"""Keeps the captions that a job is about to replace, and puts them back."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone as fo
import fiftyone.core.clips as foc
import fiftyone.core.collections as foco
from fiftyone.operators.store import ExecutionStore

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.progress import ProgressListener, tracked
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.captions import caption_index, mirror_captions
from fiftyone_regioncap.dataset.corrections import mark_outdated
from fiftyone_regioncap.dataset.geometry import labels_of
from fiftyone_regioncap.dataset.schema import error_field, origin_field, status_field
from fiftyone_regioncap.dataset.store import Store
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.jobs.options import UndoOptions

STORE = "regioncap_captions_before"
"""Name of the execution store of a dataset, which goes when the dataset goes."""


@dataclass(frozen=True)
class UndoSummary:
    """What was put back.

    Attributes:
        samples: Number of samples whose captions are as before the last job.
        captions: Number of captions that they have now.
    """

    samples: int
    captions: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Returns a line for people."""
        return (
            f"**{self.captions:,}** captions of **{self.samples:,}** samples are as "
            "before the last job; undo once more to have what it wrote"
        )


def begin(dataset: fo.Dataset, field: str, run: str) -> None:
    """Forgets what earlier jobs replaced, as another one begins; any worker may.

    Args:
        dataset: Dataset of videos.
        field: Field of the captions.
        run: Id that all workers of the job share.
    """
    store = ExecutionStore.create(STORE, dataset._doc.id)
    for key in store.list_keys():
        if key.startswith(f"{field}:") and not key.startswith(f"{field}:{run}:"):
            store.delete(key)


def keep(sample: fo.Sample | fo.SampleView, field: str, tracks: str, run: str) -> None:
    """Keeps a sample's captions before a job changes them, unless it has them already.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the captions.
        tracks: Frame field of the tracks that have the captions too.
        run: Id that all workers of the job share.
    """
    own = Store.of(sample)
    store = ExecutionStore.create(STORE, own.dataset._doc.id)
    key = f"{field}:{run}:{own.sample_id}"
    if store.get(key) is None:
        store.set(key, {"tracks": tracks, "values": _values(own, field)})


def undo_captions(
    samples: foco.SampleCollection,
    options: UndoOptions,
    *,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> UndoSummary:
    """Puts captions back as they were before the last job on their field.

    What the job wrote is kept in their place, so that undoing twice changes nothing.
    Reviews and edits since the job go with its captions. Captions of tracks that were
    deleted or merged since are tagged outdated.

    Args:
        samples: A dataset or a view; only its samples are changed.
        options: The field of the captions.
        listener: Called with progress events.
        cancel: Set it to stop before the next sample.

    Returns:
        What was put back.

    Raises:
        FieldError: When there is no such field, or no job has changed it.
    """
    field, dataset = options.captions, samples._root_dataset
    fields.require_captions(dataset, field)
    store = ExecutionStore.create(STORE, dataset._doc.id)
    clips = isinstance(samples, foc.ClipsView)
    wanted = set(samples.values("sample_id" if clips else "id"))
    keys = [
        key
        for key in sorted(store.list_keys())
        if key.startswith(f"{field}:") and key.rpartition(":")[2] in wanted
    ]
    if not keys:
        raise FieldError(
            f"no job has changed {field} of these samples since captions are kept; "
            "there is nothing to undo"
        )
    captions = 0
    for key in tracked(keys, "caption", field, len(keys), listener, cancel):
        kept = store.get(key)
        assert kept is not None
        sample = dataset[key.rpartition(":")[2]]
        own = Store.of(sample)
        now = _values(own, field)
        there = {
            name: value
            for name, value in kept["values"].items()
            if dataset.has_sample_field(name)
        }
        own.write_sample(there)
        store.set(key, {"tracks": kept["tracks"], "values": now})
        written, put_back = (
            labels_of(values[field]) for values in (now, kept["values"])
        )
        objects = {caption_index(label) for label in [*written, *put_back]}
        if dataset.has_field(kept["tracks"]):
            mirror_captions(sample, field, kept["tracks"], objects=objects)
            tracks = read_tracks(sample, kept["tracks"])
            for number in objects - {track.object_id for track in tracks}:
                mark_outdated(sample, field, number)  # deleted or merged since
        captions += len(put_back)
    return UndoSummary(len(keys), captions)


def _values(own: Store, field: str) -> dict[str, Any]:
    """Returns a sample's captions, their status and what they were made from."""
    names = (field, status_field(field), error_field(field), origin_field(field))
    found = own.sample_document(*names)
    return {name: found.get(name) for name in names}
