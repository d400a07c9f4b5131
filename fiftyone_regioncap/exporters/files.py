"""Writes JSON files larger than memory, item by item."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson


def dumps(value: Any) -> bytes:
    """Returns a value as one line of JSON in UTF-8."""
    return orjson.dumps(value)


def write_object(path: Path, head: Mapping[str, Any], **lists: Iterable[bytes]) -> None:
    """Writes a JSON object whose last values are long lists.

    Args:
        path: Path of the file.
        head: Its first values.
        **lists: Encoded items by key; each is used up before the next is begun.
    """
    with _opened(path) as file:
        file.write(b"{")
        for number, (key, value) in enumerate(head.items()):
            file.write(b",\n" * (number > 0) + dumps(key) + b":" + dumps(value))
        for number, (key, items) in enumerate(lists.items(), len(head)):
            file.write(b",\n" * (number > 0) + dumps(key) + b":[")
            _write_items(file, items)
            file.write(b"]")
        file.write(b"}\n")


def write_list(path: Path, items: Iterable[bytes]) -> None:
    """Writes a JSON list of encoded items."""
    with _opened(path) as file:
        file.write(b"[")
        _write_items(file, items)
        file.write(b"]\n")


def write_mapping(
    path: Path, items: Iterable[tuple[str, bytes]], *, key: str | None = None
) -> None:
    """Writes a JSON object with many keys.

    Args:
        path: Path of the file.
        items: Keys and encoded values.
        key: Writes it as the only value of another object, under this key.
    """
    with _opened(path) as file:
        file.write(b"{" if key is None else b"{" + dumps(key) + b":{")
        _write_items(file, (dumps(name) + b":" + value for name, value in items))
        file.write(b"}\n" if key is None else b"}}\n")


def write_lines(path: Path, items: Iterable[bytes]) -> None:
    """Writes a file of encoded items, a line each."""
    with _opened(path) as file:
        file.writelines(item + b"\n" for item in items)


def _opened(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _write_items(file: BinaryIO, items: Iterable[bytes]) -> None:
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
    """Returns the hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
