"""Removes temporary files that processes of this machine left when they were killed."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path


def remove_leftovers(folder: Path, prefix: str, suffix: str) -> str:
    """Removes the files of processes that have ended.

    Args:
        folder: Folder of the files.
        prefix: Beginning of their names, which the number of their process follows.
        suffix: End of their names.

    Returns:
        The prefix with the number of this process.
    """
    for path in folder.glob(f"{glob.escape(prefix)}*{suffix}"):
        number = re.match(r"\d+", path.name[len(prefix) :])
        if number is not None and not _lives(int(number[0])):
            path.unlink(missing_ok=True)
    return f"{prefix}{os.getpid()}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True
