"""What an operator works on: the view, the open sample, or selected objects of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fiftyone as fo
from bson import ObjectId
from fiftyone import ViewField as F
from fiftyone.operators import types
from fiftyone.operators.constants import ViewTarget

from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.corrections import (
    last_edited,
    sequence_labels,
    track_labels,
)
from fiftyone_regioncap.dataset.geometry import labels_of
from fiftyone_regioncap.dataset.objects import Identity
from fiftyone_regioncap.dataset.sequences import are_sequences, sequence_of
from fiftyone_regioncap.dataset.store import FRAMES_PREFIX, frame_path
from fiftyone_regioncap.dataset.targets import name_of
from fiftyone_regioncap.operations import Operation

from ._inputs import pick

SCOPE = "scope"

_OBJECTS = {
    "propagate": ("prompts",),
    "propagate_and_caption": ("prompts",),
    "caption": ("tracks",),
    "propagate_from": ("tracks",),
}
"""Options that name the fields of which only selected objects are worked on."""


def ask(inputs: types.Object, ctx: Any, operation: Operation) -> None:
    """Asks what to work on; an open sample is known.

    Args:
        inputs: The form.
        ctx: The execution context.
        operation: Operation that is asked about.
    """
    if ctx.current_sample is None:
        default = None
        if operation.name == "search_captions":
            # Else a search would look inside what the one before found.
            generated = ctx.view._is_generated
            default = ViewTarget.BASE_VIEW if generated else ViewTarget.DATASET
        inputs.view_target(
            ctx,
            action_description=operation.action,
            allow_selected_samples=True,
            default_target=default,
        )
        return
    texts = {"sample": f"The open sample, {name_of(_open(ctx).first())}"}
    selected = _objects(ctx, operation)
    if selected:
        word = "object" if len(selected) == 1 else "objects"
        texts = {"objects": f"{len(selected)} selected {word} of it", **texts}
    everything = {"view": "Everything in the grid"}
    # What runs models is meant for what is looked at; the rest is about many.
    texts = {**texts, **everything} if operation.models else {**everything, **texts}
    pick(inputs, SCOPE, texts, label=f"{operation.action} what")


def samples(ctx: Any, operation: Operation) -> Any:
    """Returns the samples that an operation is asked to work on."""
    scope = ctx.params.get(SCOPE)
    if scope is None and ctx.current_sample is not None and operation.models:
        scope = "objects" if _objects(ctx, operation) else "sample"
    if ctx.current_sample is None or scope in (None, "view"):
        return ctx.target_view()
    view = _open(ctx)
    if scope == "objects":
        for option in _OBJECTS[operation.name]:
            default = next(f.default for f in operation.fields if f.name == option)
            view = _only(ctx, view, ctx.params.get(option) or default)
    return view


def selection(ctx: Any) -> list[dict[str, Any]]:
    """Returns the selected labels of the open sample, one an object.

    Each has ``label_id``, ``sample_id`` and ``field``, and ``index``, ``instance`` and
    ``frame`` (as FiftyOne counts) where they are known.
    """
    found: dict[Any, dict[str, Any]] = {}
    for chosen in ctx.selected_labels or ():
        label = _label(ctx.dataset, chosen)
        own = Identity() if label is None else Identity.of(label)
        index, instance = own.index, own.instance
        one = {
            "label_id": chosen["label_id"],
            "sample_id": chosen["sample_id"],
            "field": chosen["field"],
            "index": index,
            "instance": instance,
            "frame": chosen.get("frame_number"),
        }
        found.setdefault((index, instance) if label else chosen["label_id"], one)
    return list(found.values())


def _objects(ctx: Any, operation: Operation) -> list[dict[str, Any]]:
    """Returns the selected objects, where an operation can be done to them alone.

    Views that hide labels of images can't be sequences.
    """
    if operation.name not in _OBJECTS or are_sequences(ctx.view):
        return []
    return selection(ctx)


def _open(ctx: Any) -> Any:
    """Returns a view of the open sample, or of the sequence of the open image."""
    if are_sequences(ctx.view):
        return sequence_of(ctx.view, ctx.current_sample)[0]
    return ctx.view.select(ctx.current_sample)


def _label(dataset: fo.Dataset, chosen: dict[str, Any]) -> dict[str, Any] | None:
    """Reads a selected label; None when it is gone."""
    field = chosen["field"]
    frames = field.startswith(FRAMES_PREFIX)
    collection = dataset._frame_collection if frames else dataset._sample_collection
    sample_id = ObjectId(chosen["sample_id"])
    query = (
        {"_sample_id": sample_id, "frame_number": chosen.get("frame_number")}
        if frames
        else {"_id": sample_id}
    )
    name = frame_path(field)
    document = collection.find_one(query, {name: 1}) or {}
    for label in labels_of(document.get(name)):
        if str(label["_id"]) == chosen["label_id"]:
            return label
    return None


def _only(ctx: Any, view: Any, field: str) -> Any:
    """Returns a view without the other objects of a field."""
    chosen = selection(ctx)
    indexes = [one["index"] for one in chosen if one["index"] is not None]
    instances = [ObjectId(one["instance"]) for one in chosen if one["instance"]]
    ids = [ObjectId(one["label_id"]) for one in chosen]
    own = (
        F("_id").is_in(ids)
        | F("index").is_in(indexes)
        | F("instance._id").is_in(instances)
    )
    return view.filter_labels(field, own, only_matches=False)


def offered(ctx: Any, params: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns what can be chosen of the open sample's corrections.

    Args:
        ctx: The execution context.
        params: Parameters of the form.

    Returns:
        Texts by value for ``object_id`` and ``frame``, those that were selected or
        edited last first; empty where no sample is open.
    """
    tracks = params.get("tracks") or fields.TRACKS
    sequences = are_sequences(ctx.view)
    if sequences:
        tracks = frame_path(tracks)
    if ctx.current_sample is None or not ctx.dataset.has_field(tracks):
        return {}
    chosen = [one for one in selection(ctx) if one["field"] == tracks]
    if sequences:
        _, images = sequence_of(ctx.view, ctx.current_sample)
        labels = sequence_labels(ctx.dataset, images, tracks)
        number = {image: frame for frame, image in enumerate(images, start=1)}
        chosen = [{**one, "frame": number.get(one["sample_id"])} for one in chosen]
    else:
        labels = track_labels(_open(ctx).first(), tracks)
    chosen = [one for one in chosen if one["frame"]]
    last = last_edited(labels)
    places = [(one["index"], one["frame"] - 1, "selected") for one in chosen]
    if last is not None:
        places.append((last.index, last.frame, "edited last"))
    edited = [label for label in labels if label.owner == "edited"]
    places += [(label.index, label.frame, "edited") for label in edited]
    names = {label.index: label.label.get("label") or "object" for label in labels}
    objects = {str(index): f"{index}: {names.get(index)}" for index, _, _ in places}
    objects |= {str(index): f"{index}: {name}" for index, name in names.items()}
    frames: dict[str, str] = {}
    for _, frame, why in places:
        frames.setdefault(str(frame), f"Frame {frame + 1}, {why}")
    return {"object_id": objects, "frame": frames} if frames else {"object_id": objects}
