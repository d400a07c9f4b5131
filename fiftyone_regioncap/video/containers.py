"""Reads the stated sizes of media files, to detect files that were cut off.

Demuxers end quietly where the bytes end. The outermost structure of the common
containers states sizes, though: ISO base media boxes (ISO/IEC 14496-12: MP4, MOV), RIFF
chunks (AVI) and EBML elements (RFC 8794: Matroska, WebM).
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"


def missing_bytes(path: str | os.PathLike[str]) -> int:
    """Computes how many bytes are missing at the end of a file by its own header.

    Args:
        path: Path of the file.

    Returns:
        0 for whole files, and for containers that don't state their size.
    """
    actual = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(12)
        file.seek(0)
        if start[:4] == _EBML_HEADER:
            stated = _end_of_segment(file)
        elif start[:4] == b"RIFF":
            stated = _end_of_chunks(file, actual)
        elif start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            stated = _end_of_boxes(file, actual)
        else:
            stated = 0
    return max(stated - actual, 0)


def _end_of_boxes(file: BinaryIO, actual: int) -> int:
    end = 0
    while end < actual:
        file.seek(end)
        header = file.read(16)
        if len(header) < 8:
            return end + 8
        size, kind = struct.unpack(">I4s", header[:8])
        if not kind.isalnum():
            return end  # not a box: something was appended to the file
        if size == 0:
            return actual  # by definition up to the end of the file
        if size == 1:
            if len(header) < 16:
                return end + 16
            size = struct.unpack(">Q", header[8:])[0]
        if size < 8:
            return end
        end += size
    return end


def _end_of_chunks(file: BinaryIO, actual: int) -> int:
    end = 0
    while end < actual:
        file.seek(end)
        header = file.read(8)
        if len(header) < 8 or header[:4] != b"RIFF":
            return end
        size = struct.unpack("<I", header[4:])[0]
        if size in (0, 0xFFFFFFFF):
            return end  # its writer never finished the header
        end += 8 + size + size % 2
    return end


def _end_of_segment(file: BinaryIO) -> int:
    file.seek(4)
    header_size = _variable_size(file)
    if header_size is None:
        return 0
    file.seek(header_size, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    size = _variable_size(file)
    return 0 if size is None else file.tell() + size


def _variable_size(file: BinaryIO) -> int | None:
    """Reads an EBML size (one leading zero bit per further byte); None if unknown."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big") - (1 << 7 * length)
    return None if value == (1 << 7 * length) - 1 else value
