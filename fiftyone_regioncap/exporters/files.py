"""JSON files larger than memory, written item by item."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from fiftyone_regioncap.core.types import RLE


def dumps(value: Any) -> bytes:
    """A value as one line of JSON in UTF-8."""
    return orjson.dumps(value)


def coco_rle(rle: RLE) -> dict[str, Any]:
    """Run lengths as COCO's JSON has them."""
    return {"size": list(rle.size), "counts": rle.counts.decode("ascii")}


def write_object(path: Path, head: Mapping[str, Any], **lists: Iterable[bytes]) -> None:
    """Writes a JSON object whose last values are long lists.

    Args:
        path: of the file.
        head: its first values.
        **lists: encoded items by key; each is used up before the next is begun.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"{")
        comma = b""
        for key, value in head.items():
            file.write(comma + dumps(key) + b":" + dumps(value))
            comma = b",\n"
        for key, items in lists.items():
            file.write(comma + dumps(key) + b":[")
            _write_items(file, items)
            file.write(b"]")
            comma = b",\n"
        file.write(b"}\n")


def write_list(path: Path, items: Iterable[bytes]) -> None:
    """Writes a JSON list.

    Args:
        path: of the file.
        items: encoded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"[")
        _write_items(file, items)
        file.write(b"]\n")


def write_mapping(
    path: Path, items: Iterable[tuple[str, bytes]], *, key: str | None = None
) -> None:
    """Writes a JSON object with many keys.

    Args:
        path: of the file.
        items: keys and encoded values.
        key: writes it as the only value of another object, under this key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"{" if key is None else b"{" + dumps(key) + b":{")
        _write_items(file, (dumps(name) + b":" + value for name, value in items))
        file.write(b"}\n" if key is None else b"}}\n")


def write_lines(path: Path, items: Iterable[bytes]) -> None:
    """Writes a file of lines, such as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(item + b"\n" for item in items)


def _write_items(file: Any, items: Iterable[bytes]) -> None:
    separator = b"\n"
    for item in items:
        file.write(separator + item)
        separator = b",\n"


def replace_file(path: Path, content: bytes) -> None:
    """Writes a small file so that a reader sees the old one or the new, never half."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sha256_of(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
