"""Reads files of other tools; nothing in them is used before it is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from fiftyone_regioncap.core.options import is_text
from fiftyone_regioncap.core.types import RLE, polygons_to_mask, run_lengths
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.captions import caption_from_json
from fiftyone_regioncap.exporters.staging import ExportError

T = TypeVar("T")

NO_LABEL = "object"
"""The category of objects whose name isn't known."""

_MAX_PIXELS = 2**28  # far more than any video; keeps a forged size from taking memory


@dataclass
class ImportedVideo:
    """One validated video of an imported file. Frames count from 0.

    Attributes:
        name: Name of the video in the export, or of its file, with or without suffix.
        size: (height, width) in pixels; None where the format doesn't say.
        frame_count: Number of frames; None where the format doesn't say.
        masks: Masks by frame and object id.
        labels: Names of the objects by object id, where they are known.
        captions: Captions of the objects, by object and window.
        scores: Scores in [0, 1] by frame and object id, where the format has them.
        skipped: Entries passed over because they are no track or caption, and why.
    """

    name: str
    size: tuple[int, int] | None = None
    frame_count: int | None = None
    masks: dict[int, dict[int, RLE]] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    captions: dict[tuple[int, tuple[int, int]], CaptionRecord] = field(
        default_factory=dict
    )
    scores: dict[tuple[int, int], float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add_mask(
        self, frame: Any, index: int, mask: Any, score: float | None = None
    ) -> None:
        """Adds a mask; one that is null or empty means that the object isn't visible.

        Args:
            frame: The 0-based frame, as the file has it.
            index: The object id.
            mask: COCO run lengths or polygons, as the file has them.
            score: The mask's score in [0, 1].

        Raises:
            ExportError: When it is no mask, or one of another size.
        """
        if mask is None or not (rle := read_mask(mask, self.size)).area():
            return
        frame = integer(frame, "frame")
        self.size = self.size or rle.size
        self.masks.setdefault(frame, {})[index] = rle
        if score is not None:
            self.scores[frame, index] = min(max(score, 0.0), 1.0)

    def add_label(self, index: int, label: Any) -> None:
        """Names an object, unless the file has no name for it."""
        if label is not None and label != NO_LABEL:
            self.labels[index] = text(label, f"the label of object {index}")

    def add_caption(self, value: Any, **known: Any) -> None:
        """Adds a caption that an export of ours has written.

        Args:
            value: The caption as JSON values.
            **known: Attributes that the JSON doesn't hold, such as ``index``.

        Raises:
            ExportError: When it is no caption.
        """
        record = caption_from_json(value, **known)
        self.captions[record.key] = record
        if record.label:
            self.labels.setdefault(record.index, record.label)

    def add_text(self, index: int, caption: Any) -> None:
        """Adds a caption of another tool, about all frames where the object is visible.

        Several captions of an object become one, a line each.

        Args:
            index: The object id.
            caption: The caption's text, as the file has it.

        Raises:
            ExportError: When it is no text, or the object is nowhere visible.
        """
        frames = [frame for frame, masks in self.masks.items() if index in masks]
        if not frames:
            raise ExportError(f"object {index} has a caption, and no mask")
        said = text(caption, "caption")
        support = (min(frames), max(frames))
        if known := self.captions.get((index, support)):
            said = f"{known.caption}\n{said}"
        record = CaptionRecord(index, support, self.labels.get(index), said)
        self.captions[record.key] = record


@dataclass(frozen=True)
class BrokenVideo:
    """One video that can't be read out of a file.

    Attributes:
        name: Name of the video, as far as it is known.
        error: Message that says what is wrong.
    """

    name: str
    error: str


def read_videos(
    videos: Iterable[tuple[str, T]], read: Callable[[str, T], ImportedVideo]
) -> Iterator[ImportedVideo | BrokenVideo]:
    """Reads videos one by one, so that a damaged one costs only itself.

    Args:
        videos: Pairs of a video's name and what the file holds of it.
        read: The function that reads one.
    """
    for name, value in videos:
        name = name.encode(errors="backslashreplace").decode()
        found: ImportedVideo | BrokenVideo
        try:
            found = read(name, value)
        except ExportError as error:
            found = BrokenVideo(name, str(error))
        except Exception as error:  # a shape that no check foresaw
            found = BrokenVideo(name, f"{type(error).__name__}: {error}")
        yield found


class Entry:
    """A JSON object out of a file, whose values are read by type.

    Errors name the object, the key and what is wrong.
    """

    def __init__(self, value: Any, what: str) -> None:
        """Checks that a value is a JSON object.

        Args:
            value: The value.
            what: Name of the object in messages, such as ``"annotation 5"``.

        Raises:
            ExportError: When it is none.
        """
        if not isinstance(value, Mapping):
            raise ExportError(f"{what} is no JSON object: {_shown(value)}")
        self.value = value
        self.what = what

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value as it is; the default when it is absent or null."""
        found = self.value.get(key)
        return default if found is None else found

    def key(self, key: str) -> Any:
        """Returns a value that entries are found by, such as an id."""
        found = self.value.get(key)
        return found if isinstance(found, int | float | str | None) else repr(found)

    def require(self, key: str) -> Any:
        """Returns a value as it is.

        Raises:
            ExportError: When it is absent or null.
        """
        if (found := self.get(key)) is None:
            raise ExportError(f"{self.what} has no {key!r}")
        return found

    def integer(self, key: str) -> int:
        """Returns a whole number."""
        return integer(self.require(key), f"{key!r} of {self.what}")

    def optional(self, key: str, read: Callable[[Any, str], T]) -> T | None:
        """Reads a value by a function such as :func:`number`; None when absent."""
        found = self.get(key)
        return None if found is None else read(found, f"{key!r} of {self.what}")

    def text(self, key: str) -> str:
        """Returns a text."""
        return text(self.require(key), f"{key!r} of {self.what}")

    def items(self, key: str) -> list[Any]:
        """Returns a list; empty when it is absent."""
        return array(self.get(key, []), f"{key!r} of {self.what}")

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Returns an object; empty when it is absent."""
        return Entry(self.get(key, {}), f"{key!r} of {self.what}").value

    def entries(self, key: str, name: str, *, required: bool = True) -> list[Entry]:
        """Returns a list of objects.

        Args:
            key: Key of the list.
            name: Name of each in messages.
            required: Whether it must be there.
        """
        if required:
            self.require(key)
        found = []
        for position, value in enumerate(self.items(key)):
            entry = Entry(value, f"{name} number {position}")
            if entry.get("id") is not None:
                entry.what = f"{name} {entry.get('id')}"
            found.append(entry)
        return found

    def size(self, height: str = "height", width: str = "width") -> tuple[int, int]:
        """Reads the (height, width) of a video."""
        return checked_size(self.integer(height), self.integer(width))


def category_names(document: Entry) -> dict[Any, Any]:
    """Returns a COCO file's category names by id; they are checked when used."""
    entries = document.entries("categories", "category", required=False)
    return {entry.key("id"): entry.get("name") for entry in entries}


def grouped(
    entries: Iterable[Entry], key: str, videos: Collection[Any]
) -> tuple[dict[Any, list[Entry]], list[BrokenVideo]]:
    """Groups entries of a COCO file by video.

    Args:
        entries: The entries.
        key: Key of the video's id in them.
        videos: Ids of the videos that the file holds.

    Returns:
        The entries by the id of their video, and what is wrong with those of no video.
    """
    found: dict[Any, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.key(key), []).append(entry)
    orphans = [
        BrokenVideo(f"{key} {video}", f"{own[0].what} is of no video in the file")
        for video, own in found.items()
        if video not in videos
    ]
    return found, orphans


def integer(value: Any, what: str) -> int:
    """Returns a whole number of at most 64 bits, given as one or as its digits.

    Args:
        value: The value, as the file has it.
        what: Name of the object in messages.

    Raises:
        ExportError: When it is none.
    """
    try:
        whole = int(value)
        fits = whole == float(value) and -(2**63) <= whole < 2**63
        if fits and not isinstance(value, bool):
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise ExportError(f"{what} is no whole number: {_shown(value)}")


def number(value: Any, what: str) -> float:
    """Returns a finite number; see :func:`integer`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExportError(f"{what} is no number: {_shown(value)}")
    if not math.isfinite(value):
        raise ExportError(f"{what} is not finite: {value}")
    return float(value)


def text(value: Any, what: str) -> str:
    """Returns a text; see :func:`integer`."""
    if not isinstance(value, str) or not is_text(value):
        raise ExportError(f"{what} is no text: {_shown(value)}")
    return value


def array(value: Any, what: str) -> list[Any]:
    """Returns a list; see :func:`integer`."""
    if not isinstance(value, list):
        raise ExportError(f"{what} is no list: {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:60]


def find_file(path: Path, *names: str) -> Path:
    """Returns the file of a format in an exported folder, or the one that was named.

    Raises:
        ExportError: When there is none.
    """
    if path.is_file():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ExportError(
        f"there is no {' or '.join(names)} in {path}; give the exported folder, "
        "for one with splits that of a split, or the file itself"
    )


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        ExportError: When the file can't be read.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} can't be read as JSON: {error}") from error


def read_document(path: Path) -> Entry:
    """Returns the object that a JSON file holds."""
    return Entry(read_json(path), str(path))


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Iterates over the values of a JSON lines file and their line numbers, from 1.

    A line that is no JSON gives a text that says so.
    """
    with path.open("rb") as file:
        for line_number, line in enumerate(file, 1):
            if line.strip():
                value: Any
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    value = f"no JSON: {error}"
                yield line_number, value


def checked_size(height: int, width: int) -> tuple[int, int]:
    """Returns a frame's size, unless it is no size of a frame.

    Raises:
        ExportError: When there is no pixel, or there are too many.
    """
    if height <= 0 or width <= 0 or height * width > _MAX_PIXELS:
        raise ExportError(f"{width}x{height} pixels is no size of a frame")
    return height, width


def read_mask(value: Any, size: tuple[int, int] | None = None) -> RLE:
    """Returns a mask out of a file: COCO run lengths, compressed or not, or polygons.

    Args:
        value: The mask as JSON values.
        size: (height, width) that it should have; needed for polygons.

    Raises:
        ExportError: When it is no mask, or of another size.
    """
    if isinstance(value, list):
        return _read_polygons(value, size)
    entry = Entry(value, "a mask")
    sides = entry.items("size")
    if len(sides) != 2:
        raise ExportError(f"a mask has no size: {_shown(value)}")
    height, width = checked_size(*(integer(side, "size of a mask") for side in sides))
    if size is not None and (height, width) != size:
        raise ExportError(
            f"a mask is {width}x{height}, its video {size[1]}x{size[0]}; import into "
            "the video that it was made for"
        )
    counts = entry.require("counts")
    if isinstance(counts, list):
        runs = [integer(run, "run length of a mask") for run in counts]
        if any(run < 0 for run in runs):
            raise ExportError("a mask has run lengths below 0")
    else:
        try:
            runs = run_lengths(text(counts, "run lengths of a mask"))
        except ValueError as error:
            raise ExportError(str(error)) from None
    if sum(runs) != height * width:
        raise ExportError(
            f"the runs of a mask cover {sum(runs)} of {height * width} pixels; it is "
            "damaged"
        )
    if isinstance(counts, list):
        plain = {"size": [height, width], "counts": runs}
        return RLE(
            (height, width), coco_mask.frPyObjects(plain, height, width)["counts"]
        )
    return RLE((height, width), counts.encode("ascii"))


def _read_polygons(value: list[Any], size: tuple[int, int] | None) -> RLE:
    """Reads ``[[x, y, x, y, ...], ...]`` as COCO has it, by the even-odd rule."""
    if size is None:
        raise ExportError("a mask is given as polygons, and nothing says its size")
    try:
        rings = [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in value]
    except (TypeError, ValueError, OverflowError) as error:
        raise ExportError(f"no polygon: {error}") from error
    if any(len(ring) < 3 or not np.isfinite(ring).all() for ring in rings):
        raise ExportError("a polygon has fewer than 3 points, or one that is no number")
    mask = np.zeros(size, dtype=bool)
    for ring in rings:
        mask |= polygons_to_mask([ring], *size)
    return RLE.encode(mask)
