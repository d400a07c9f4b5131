"""Reads from a sample where its objects are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import fiftyone as fo
import numpy as np

from fiftyone_regioncap.errors import PromptError
from fiftyone_regioncap.labels.fields import require_prompts
from fiftyone_regioncap.labels.geometry import Shape, labels_of, shape_of
from fiftyone_regioncap.labels.objects import ObjectIds, identity
from fiftyone_regioncap.labels.store import (
    FRAMES_PREFIX,
    Document,
    Store,
    frame_path,
)
from fiftyone_regioncap.regions import Prompt


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one sample.

    Attributes:
        prompts: in the order of frames.
        labels: what each object is, by object id; None where no prompt says so.
        instances: ids of the objects' ``fo.Instance``, for those that have one.
    """

    prompts: list[Prompt]
    labels: Mapping[int, str | None]
    instances: Mapping[int, str]


def read_prompts(
    sample: fo.Sample | fo.SampleView,
    field: str,
    *,
    height: int,
    width: int,
    frame_count: int | None = None,
    keyframes_only: bool = False,
) -> PromptSet:
    """Reads where objects are from any boxes, masks, points or polylines.

    Frame numbers count, never the place of a frame's document among others. A label's
    ``index`` is its object id; several labels of one index are several prompts of that
    object. Without an index, labels that share an ``instance`` are one object, and any
    other label is an object of its own (see
    :class:`fiftyone_regioncap.labels.objects.ObjectIds`). Filters of the view that the
    sample comes from hold.

    Args:
        sample: a video; of a clips view, prompts outside the clip are left out.
        field: ``frames.<name>``, or a sample-level field, which is about frame 1.
        height: of the video's frames in pixels.
        width: of the video's frames in pixels.
        frame_count: of the video; None leaves prompts past its end to the propagator.
        keyframes_only: whether to take only labels whose ``keyframe`` is true, for
            fields that hold tracks on every frame.

    Returns:
        the prompts, with one for all points of an object on a frame.

    Raises:
        FieldError: when there is no such field, or it holds something else.
        PromptError: when a prompt doesn't fit its frame.
    """
    collection = sample._collection
    require_prompts(collection, field)
    found = [
        (frame, label)
        for frame, label in _labels(sample, field)
        if label.get("keyframe") or not keyframes_only
    ]
    ids = ObjectIds.scan(identity(label) for _, label in found)
    prompts: dict[tuple[int, int, int], Prompt] = {}
    labels: dict[int, str | None] = {}
    instances: dict[int, str] = {}
    for number, (frame, label) in enumerate(found):
        shape = shape_of(label, height, width)
        if shape is None:
            continue
        own = identity(label)
        object_id = ids.of(own)
        if object_id is None:
            object_id = ids.new()
        name = label.get("label")
        labels[object_id] = labels.get(object_id) or name
        if own[1] is not None:
            instances.setdefault(object_id, own[1])
        prompt = _prompt(object_id, frame, shape, name)
        # Points off an object mean nothing without those on it, so all points of an
        # object on a frame make one prompt.
        place = (object_id, frame, -1 if shape.points is not None else number)
        if place in prompts:
            prompt = _joined(prompts[place], prompt)
        prompts[place] = prompt
    for prompt in prompts.values():
        prompt.check(height, width, frame_count or prompt.frame + 1)
    return PromptSet(list(prompts.values()), labels, instances)


def _labels(
    sample: fo.Sample | fo.SampleView, field: str
) -> Iterator[tuple[int, Document]]:
    store = Store.of(sample)
    if field.startswith(FRAMES_PREFIX):
        name = frame_path(field)
        for document in store.frames([name]):
            for label in labels_of(document.get(name)):
                yield document["frame_number"] - 1, label
    elif store.support is None or store.support[0] == 0:
        value = sample[field]
        for label in labels_of(None if value is None else value.to_mongo().to_dict()):
            yield 0, label


def _prompt(object_id: int, frame: int, shape: Shape, label: str | None) -> Prompt:
    return Prompt(
        object_id,
        frame,
        # A mask says more than its box, and a box of another tool may not fit it.
        box=shape.box if shape.mask is None else None,
        points=shape.points,
        point_signs=shape.point_signs,
        mask=shape.mask,
        label=label,
    )


def _joined(one: Prompt, other: Prompt) -> Prompt:
    """Two prompts of points on the same object and frame as one."""
    if one.label and other.label and one.label != other.label:
        raise PromptError(
            f"object {one.object_id} is {one.label!r} and {other.label!r} on frame "
            f"{one.frame + 1}; give different objects different indexes"
        )
    assert one.points is not None and other.points is not None
    assert one.point_signs is not None and other.point_signs is not None
    return replace(
        one,
        points=np.concatenate([one.points, other.points]),
        point_signs=np.concatenate([one.point_signs, other.point_signs]),
        label=one.label or other.label,
    )
