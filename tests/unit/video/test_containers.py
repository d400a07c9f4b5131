from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fiftyone_regioncap.video.containers import missing_bytes


def box(kind: bytes, size: int) -> bytes:
    return struct.pack(">I4s", size, kind) + bytes(size - 8)


def large_box(kind: bytes, size: int) -> bytes:
    return struct.pack(">I4sQ", 1, kind, size) + bytes(size - 16)


EBML = b"\x1a\x45\xdf\xa3\x84" + bytes(4)


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (box(b"ftyp", 20) + box(b"mdat", 100), 0),
        ((box(b"ftyp", 20) + box(b"mdat", 100))[:-30], 30),
        ((box(b"ftyp", 20) + large_box(b"mdat", 100))[:-30], 30),
        # A last box of size 0 goes on to the end of the file.
        (box(b"ftyp", 20) + struct.pack(">I4s", 0, b"mdat") + bytes(5), 0),
        # Something that isn't a box was appended.
        (box(b"ftyp", 20) + box(b"moov", 50) + bytes(100), 0),
        # Cut in the middle of a box's header.
        (box(b"ftyp", 20) + b"\0\0\1", 5),
        (b"RIFF" + struct.pack("<I", 40) + b"AVI " + bytes(36), 0),
        (b"RIFF" + struct.pack("<I", 40) + b"AVI " + bytes(26), 10),
        # A second chunk, as files past 1 GB have.
        ((b"RIFF" + struct.pack("<I", 12) + b"AVI " + bytes(8)) * 2, 0),
        # A recorder that never finished its header.
        (b"RIFF" + struct.pack("<I", 0) + b"AVI " + bytes(26), 0),
        (EBML + b"\x18\x53\x80\x67\x8a" + bytes(10), 0),
        (EBML + b"\x18\x53\x80\x67\x8a" + bytes(7), 3),
        (EBML + b"\x18\x53\x80\x67\x01" + bytes(6) + b"\x09" + bytes(4), 5),
        # A live stream: size unknown.
        (EBML + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + bytes(9), 0),
        (b"\x47" * 188, 0),
        (b"", 0),
    ],
)
def test_missing_bytes(tmp_path: Path, content: bytes, missing: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert missing_bytes(path) == missing
