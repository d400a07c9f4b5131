"""Pinned archives from package indexes, fetched by pip itself.

Only pip knows the user's index, mirror, certificate and proxy settings, so nothing here
opens a connection of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fiftyone_regioncap.core.errors import RegionCapError


@dataclass(frozen=True)
class PinnedArchive:
    """One file of one release of a package.

    Attributes:
        package: Name of the package on the index.
        version: Exact version of the release.
        filename: File name that pip saves the archive under.
        sha256: SHA-256 digest of the file in hex. pip checks it before it looks inside,
            so no code of an unknown archive ever runs (sdists run their ``setup.py``
            for metadata).
        kind: ``sdist`` or ``wheel``.
    """

    package: str
    version: str
    filename: str
    sha256: str
    kind: Literal["sdist", "wheel"]

    @property
    def requirement(self) -> str:
        """Returns the requirement line for pip, without the hash."""
        return f"{self.package}=={self.version}"


class PipError(RegionCapError):
    """pip could not do its work; the message carries its own last words."""


def download(archive: PinnedArchive, folder: Path) -> Path:
    """Downloads an archive.

    Args:
        archive: Archive to download.
        folder: Existing folder to put the archive in.

    Returns:
        The file.

    Raises:
        PipError: When the index cannot be reached, lacks the file, or serves another.
    """
    _run("download", archive, "--dest", str(folder))
    return folder / archive.filename


def install(archive: PinnedArchive, target: Path) -> None:
    """Unpacks a package into a folder of its own, apart from the environment.

    Args:
        archive: Archive to install.
        target: Folder to unpack into; made when absent.

    Raises:
        PipError: When the archive cannot be had, as for :func:`download`.
    """
    _run("install", archive, "--target", str(target), "--no-compile")


def _run(command: str, archive: PinnedArchive, *options: str) -> None:
    form = "--no-binary" if archive.kind == "sdist" else "--only-binary"
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(
            f"{archive.requirement} --hash=sha256:{archive.sha256}\n"
        )
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "pip", command, "--no-deps"),
                # By name, not :all:, which would also build the build tools.
                *(form, archive.package),
                *("--requirement", str(requirements)),
                *("--progress-bar", "off", "--retries", "2", "--no-input"),
                *options,
            ],
            capture_output=True,
            text=True,
            # A user-wide `user = true` cannot be combined with --target.
            env={**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
    if finished.returncode:
        words = finished.stderr.strip() or finished.stdout.strip()
        raise PipError(
            f"pip could not {command} {archive.requirement}: {_last_error(words)}"
        )


def _last_error(words: str) -> str:
    """Returns the line that gives the reason: pip's last ERROR, else its last line."""
    lines = words.splitlines() or ["no output"]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines)[-1].removeprefix("ERROR:").strip()
