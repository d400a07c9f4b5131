"""Reads tracks as run lengths, straight from the crops that are stored.

Exports need every mask of a video once, as COCO's run lengths. Going through full
frames costs many times what the object itself does, so the crop's own runs are found
and moved to their place in the frame.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import fiftyone as fo
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.types import RLE, Box, Mask, paste_mask
from fiftyone_regioncap.dataset.fields import require_tracks
from fiftyone_regioncap.dataset.geometry import pixel_box, stored_mask
from fiftyone_regioncap.dataset.metadata import describe, inside
from fiftyone_regioncap.dataset.objects import (
    IDENTITY_PATHS,
    Identity,
    object_numbers,
)
from fiftyone_regioncap.dataset.store import Document, Store, frame_path

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = len(_MAGIC) + 2

_KEYS = (*IDENTITY_PATHS, "bounding_box", "mask", "mask_path", "confidence")


@dataclass(frozen=True)
class EncodedLabel:
    """Label of one object on one frame, its mask run-length encoded.

    Attributes:
        rle: Mask at the frame's size; the filled box where it has no mask.
        area: Area of the mask in pixels.
        box: Edges in pixels, as stored.
        score: Score in [0, 1]; None where there is none.
        label: Label of the object; None when unknown.
    """

    rle: RLE
    area: int
    box: Box
    score: float | None
    label: str | None


def read_encoded(
    sample: fo.Sample | fo.SampleView,
    field: str,
    *,
    objects: Collection[int] | None = None,
    frames: Collection[int] | None = None,
    support: tuple[int, int] | None = None,
) -> Iterator[tuple[int, dict[int, EncodedLabel]]]:
    """Reads the masks of a video frame by frame, encoded.

    What lies past the end of the video is left out.

    Args:
        sample: Sample of a dataset of videos; filters of its view hold.
        field: Field of the tracks, with or without ``frames.`` in front.
        objects: Ids of the objects to read; None means all.
        frames: 0-based frames to read; None means all.
        support: (first, last) 0-based frames, inclusive; None means all.

    Yields:
        0-based frames in ascending order, each with its objects by id; frames without
        any are left out.

    Raises:
        FieldError: When there is no such field, or a mask can't be read.
    """
    require_tracks(sample._collection, field)
    name = frame_path(field)
    store = Store.of(sample)
    known = object_numbers(store, name)
    metadata = describe(sample).metadata
    height, width = metadata.frame_height, metadata.frame_width
    documents = store.frames(
        [f"{name}.detections.{key}" for key in _KEYS],
        support=inside(support, metadata),
        numbers=None if frames is None else [frame + 1 for frame in frames],
    )
    for document in documents:
        found: dict[int, EncodedLabel] = {}
        for label in (document.get(name) or {}).get("detections") or []:
            object_id = known.of(Identity.of(label))
            if (
                object_id is None
                or object_id in found  # one object is once on a frame
                or (objects is not None and object_id not in objects)
                or not label.get("bounding_box")
            ):
                continue
            found[object_id] = _encoded(label, document, height, width)
        if found:
            yield document["frame_number"] - 1, found


def _encoded(
    label: Document, document: Document, height: int, width: int
) -> EncodedLabel:
    box = pixel_box(label["bounding_box"], height, width)
    try:
        crop = _crop(label)
    except (ValueError, zlib.error) as error:
        raise FieldError(
            f"the mask of object {label.get('index')} on frame "
            f"{document['frame_number']} is damaged ({error}); propagate it again"
        ) from error
    left, top = round(box[0]), round(box[1])
    if crop is None:
        # Only what is inside the frame, as a box may be many times as large.
        bottom = min(max(round(box[3]), top + 1), height)
        right = min(max(round(box[2]), left + 1), width)
        left, top = max(left, 0), max(top, 0)
        crop = np.ones((max(bottom - top, 0), max(right - left, 0)), dtype=bool)
    elif crop.shape != (round(box[3]) - top, round(box[2]) - left):
        crop, left, top = paste_mask(crop, box, height, width), 0, 0
    rle, area = encode_crop(crop, left, top, height, width)
    return EncodedLabel(rle, area, box, label.get("confidence"), label.get("label"))


def _crop(label: Document) -> Mask | None:
    """Returns a label's cropped mask, bool (h, w); None where it has none.

    The arrays' headers are few, and parsing them takes longer than all the rest.
    """
    inline = label.get("mask")
    if inline is None:
        return stored_mask(label)
    data = zlib.decompress(inline)
    if not data.startswith(_MAGIC):
        return stored_mask(label)
    end = _HEADER + int.from_bytes(data[len(_MAGIC) : _HEADER], "little")
    dtype, shape, fortran = _array_header(data[:end])
    if len(shape) != 2 or fortran:
        return stored_mask(label)
    array = np.frombuffer(data, dtype=dtype, offset=end).reshape(shape)
    return array if array.dtype == bool else array.astype(bool)


@lru_cache(maxsize=4096)
def _array_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(
        BytesIO(header[len(_MAGIC) :])
    )
    return dtype, shape, fortran


def encode_crop(
    crop: Mask, left: int, top: int, height: int, width: int
) -> tuple[RLE, int]:
    """Encodes a mask that is given by its crop; the same bytes as the full frame's.

    Args:
        crop: Mask within the crop, bool (h, w).
        left: Column of the crop's first column in the frame; may lie outside.
        top: Row of the crop's first row in the frame; may lie outside.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.

    Returns:
        The run lengths of the full frame, and the mask's area in pixels.
    """
    crop = crop[max(-top, 0) : max(height - top, 0), max(-left, 0) :]
    crop = crop[:, : max(width - max(left, 0), 0)]
    left, top = max(left, 0), max(top, 0)
    h, w = crop.shape
    # A row of nothing below keeps the runs of neighboring columns apart, which in the
    # frame they are unless the crop is as high. A zero before and after makes every
    # run begin and end.
    rows = h + (h < height)
    flat = np.zeros(w * rows + 2, dtype=bool)
    flat[1:-1].reshape(w, rows)[:, :h] = crop.T
    edges = np.flatnonzero(flat[1:] ^ flat[:-1])
    columns = edges // rows if rows else edges
    places = edges + columns * (height - rows) + (left * height + top)
    bounds = np.empty(len(places) + 2, dtype=np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = 0, places, height * width
    counts = bounds[1:] - bounds[:-1]
    area = int(counts[1::2].sum())
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return RLE((height, width), _compressed(counts, height, width)), area


def _compressed(counts: NDArray[np.int64], height: int, width: int) -> bytes:
    plain = {"size": [height, width], "counts": counts}
    return coco_mask.frPyObjects(plain, height, width)["counts"]
