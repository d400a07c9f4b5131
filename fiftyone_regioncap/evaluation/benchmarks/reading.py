"""Reads files of benchmarks; what is wrong is said with the file and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.types import Box, Mask, run_lengths


class BenchmarkError(RegionCapError, ValueError):
    """Files of a benchmark, or predictions for it, are not what they should be."""


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        BenchmarkError: If the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BenchmarkError(f"{path} is not there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} cannot be read as JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        BenchmarkError: If the file is missing or holds none.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise BenchmarkError(f"{path} holds no JSON object")
    return value


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON list, or those of JSON lines one by one.

    Some published files are JSON lines by another suffix, so that the content decides.

    Raises:
        BenchmarkError: If the file is missing, or holds anything else.
    """
    for number, (_, value) in enumerate(read_places(path), 1):
        if not isinstance(value, dict):
            raise BenchmarkError(f"{path}: entry {number} is no JSON object")
        yield value


def read_places(path: Path) -> Iterator[tuple[int | None, Any]]:
    """Yields entries with the byte that the line of each begins at.

    Args:
        path: JSON lines; or a JSON list, whose entries have no place (None).

    Raises:
        BenchmarkError: If the file is missing, or a line is no JSON.
    """
    if not is_lines(path):
        values = read_json(path)
        if not isinstance(values, list):
            raise BenchmarkError(f"{path} holds no JSON list, and no JSON lines")
        yield from ((None, value) for value in values)
        return
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield place, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise BenchmarkError(
                        f"{path}, line {number}, is no JSON: {error}"
                    ) from error
            place += len(line)


def is_lines(path: Path) -> bool:
    """Returns whether a file holds JSON lines: an object on its first line alone.

    Raises:
        BenchmarkError: If the file can't be read.
    """
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
            more = any(line.strip() for line in file)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return path.suffix == ".jsonl" and first.strip() != b"["
    return isinstance(value, dict) and (more or path.suffix == ".jsonl")


def coco_entries(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields each annotation of a COCO file with its image.

    Raises:
        BenchmarkError: If the file has another layout, or an annotation is of no image.
    """
    document = read_object(path)
    try:
        images = {image["id"]: image for image in document["images"]}
        for annotation in document["annotations"]:
            yield annotation, images[annotation["image_id"]]
    except (KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} is no COCO file of images and annotations: {error!r} is missing"
        ) from error


def corners(box: Sequence[float]) -> Box:
    """Converts a box from x, y, width, height to pixel edges."""
    x, y, width, height = box
    return (x, y, x + width, y + height)


def read_segmentation(value: Any, height: int, width: int) -> Mask:
    """Decodes a mask as COCO's tools do.

    Args:
        value: Run lengths, compressed or not, or polygons.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        bool (height, width).

    Raises:
        BenchmarkError: If it is no mask, or one of another size.
    """
    try:
        if isinstance(value, Mapping):
            size = [int(side) for side in value["size"]]
            if size != [height, width]:
                raise BenchmarkError(
                    f"a mask is {size[1]}x{size[0]}, its image {width}x{height}; give "
                    "the images that the annotations are of"
                )
            encoded, runs = value, value["counts"]
            plain = isinstance(runs, list)
            lengths = runs if plain else run_lengths(runs)
            if sum(lengths) != height * width or min(lengths) < 0:
                raise ValueError("its runs don't cover the image")
            if plain:
                encoded = coco_mask.frPyObjects(dict(value), height, width)
        else:
            polygons = list(value)
            if polygons and not isinstance(polygons[0], list):
                polygons = [polygons]
            encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        return np.asarray(coco_mask.decode(encoded), dtype=bool)
    except BenchmarkError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BenchmarkError(f"a segmentation is no mask: {error!r}") from error


def find(folder: Path, pattern: str) -> Path:
    """Returns the file of a benchmark's folder that fits a name or pattern.

    Raises:
        BenchmarkError: If there is none, or several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(one.name for one in found)
        raise BenchmarkError(
            f"{folder} has several files {pattern}: {names}; leave one of them there"
        )
    raise BenchmarkError(
        f"{folder} has no {pattern}; `regioncap benchmark list NAME` says where it is "
        "published"
    )
