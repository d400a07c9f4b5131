"""Stages an export in a hidden folder beside its target until it is complete.

``.NAME.partial/`` holds ``parts/``, one folder a video with the video's own files and
its share of those of all videos, and ``tree/``, which is put together from them at the
end and becomes the target by one rename. A part counts once its ``part.json`` is there,
which is written last; a killed export keeps the parts that are whole, and does the
others again. A video that fails leaves nothing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.exporters.files import dumps, replace_file
from fiftyone_regioncap.system import assets

MANIFEST = "manifest.json"
GENERATOR = "fiftyone-regioncap"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class ExportError(RegionCapError):
    """An export can't be written, or an import can't be read, as a whole."""


def is_target_error(error: BaseException) -> bool:
    """Returns whether the target can't be written any more, for any video."""
    return isinstance(error, OSError) and error.errno in _FULL


class Part:
    """Contribution of one video to an export.

    Attributes:
        folder: Folder for the video's own files, at their paths in the export; it is
            there, and empty.
        scratch: Folder, likewise, for files that the merge packs into others.
        counts: Number of masks, tracks, captions and so on, for the manifest.
        labels: Names of the video's objects.
        models: (model, revision) of its captions.
        notes: What a person should know of the video.
        sizes: Number of items in each stream.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tree"
        self.scratch = folder / "scratch"
        self.counts: Counter[str] = Counter()
        self.labels: set[str] = set()
        self.models: set[tuple[str, str]] = set()
        self.notes: list[str] = []
        self.sizes: Counter[str] = Counter()
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def add(self, stream: str, item: Any, *references: int | str) -> int:
        """Appends an item to one of the files that all videos share.

        Args:
            stream: Name of the file until the format merges it.
            item: The item as JSON values.
            *references: Numbers of other items of this video, and names of categories,
                that become ids when videos are merged; see :meth:`Merge.numbered`.

        Returns:
            The item's number within the stream of this video, from 0.
        """
        if stream not in self._files:
            path = self._folder / f"{stream}.jsonl"
            self._files[stream] = self._stack.enter_context(path.open("wb"))
        line = b"\t".join([*map(_json, references), dumps(item)])
        self._files[stream].write(line + b"\n")
        self.sizes[stream] += 1
        return self.sizes[stream] - 1

    def close(self, facts: dict[str, Any]) -> None:
        """Completes the part, so that the export includes it.

        Args:
            facts: JSON values by which a later export decides whether it can reuse the
                part.
        """
        self._stack.close()
        summary = {
            **facts,
            "counts": dict(self.counts),
            "labels": sorted(self.labels),
            "models": sorted(self.models),
            "notes": self.notes,
            "sizes": dict(self.sizes),
        }
        replace_file(self._folder / "part.json", dumps(summary))

    def abandon(self) -> None:
        """Closes the files without completing the part."""
        self._stack.close()


@dataclass(frozen=True)
class Item:
    """One item that a video has added to a stream.

    Attributes:
        part: Number of its video, from 0 within the merge.
        references: References that were given with it.
        body: The encoded JSON value.
    """

    part: int
    references: tuple[Any, ...]
    body: bytes


@dataclass(frozen=True)
class Merge:
    """The finished videos of an export, or of one of its splits, to be put together.

    Attributes:
        folder: Folder to write into; the videos' own files are there already.
        split: The split that the videos belong to.
        counts: Number of masks, tracks, captions and so on.
        labels: Names of all objects, in order.
        models: (model, revision) of all captions.
    """

    folder: Path
    split: str | None
    counts: Counter[str]
    labels: Sequence[str]
    models: Sequence[tuple[str, str]]
    _folders: Sequence[Path] = field(repr=False)
    _sizes: Sequence[Mapping[str, int]] = field(repr=False)

    @property
    def categories(self) -> dict[str, int]:
        """The id of each object name, from 1."""
        return {label: number for number, label in enumerate(self.labels, 1)}

    def items(self, stream: str, references: int = 0) -> Iterator[Item]:
        """Iterates over the items of a stream, video by video.

        Args:
            stream: Name of the stream.
            references: Number of references that each item was given with.
        """
        for number, folder in enumerate(self._folders):
            path = folder / f"{stream}.jsonl"
            if not path.exists():
                continue
            with path.open("rb") as file:
                for line in file:
                    *found, body = line.rstrip(b"\n").split(b"\t", references)
                    yield Item(number, tuple(map(_value, found)), body)

    def offsets(self, stream: str) -> list[int]:
        """Returns the number of items of a stream in all videos before each one."""
        return [0, *accumulate(sizes.get(stream, 0) for sizes in self._sizes)]

    def scratch(self, part: int) -> Path:
        """Returns the folder of a video's files to pack; they may not be changed."""
        return self._folders[part] / "scratch"

    def bodies(self, stream: str) -> Iterator[bytes]:
        """Iterates over the items of a stream that have no references."""
        return (item.body for item in self.items(stream))

    def numbered(
        self, stream: str, start: int = 1, **references: str
    ) -> Iterator[bytes]:
        """Iterates over the items of a stream, with ids put in front.

        Args:
            stream: Name of a stream of JSON objects.
            start: The first ``id``.
            **references: For each reference that the items were given with, the key
                that gets its id, and the stream that it counts in; any stream for
                names of categories.
        """
        categories = self.categories
        offsets = [self.offsets(name) for name in references.values()]
        front = _front("id", *references)
        for number, item in enumerate(self.items(stream, len(offsets)), start):
            ids = [b"%d" % number]
            for reference, before in zip(item.references, offsets, strict=True):
                if isinstance(reference, str):
                    ids.append(b"%d" % categories[reference])
                else:
                    ids.append(b"%d" % (before[item.part] + reference + 1))
            yield front % tuple(ids) + item.body[1:]


def with_values(body: bytes, **values: int | str) -> bytes:
    """Returns an encoded object, which isn't empty, with more values in front."""
    return _front(*values) % tuple(map(_json, values.values())) + body[1:]


@lru_cache(maxsize=64)
def _front(*keys: str) -> bytes:
    """Returns the start of an encoded object as a template for its keys' values."""
    return b"{" + b"".join(b'"%b":%%b,' % key.encode() for key in keys)


def _json(value: int | str) -> bytes:
    return b"%d" % value if isinstance(value, int) else dumps(value)


@lru_cache(maxsize=4096)
def _value(encoded: bytes) -> int | str:
    return int(encoded) if encoded.isdigit() else json.loads(encoded)


@dataclass(frozen=True)
class Parts:
    """The parts of an export; other processes may write some of them.

    Attributes:
        root: Folder that holds them.
    """

    root: Path

    def folder(self, number: int) -> Path:
        """Returns the folder of a part."""
        return self.root / f"{number:06d}"

    def notes(self, number: int, facts: dict[str, Any]) -> list[str] | None:
        """Returns the notes of a finished video; None unless it is what it was."""
        summary = _read_json(self.folder(number) / "part.json")
        if not isinstance(summary, dict) or any(
            summary.get(key) != value for key, value in facts.items()
        ):
            return None
        return list(summary.get("notes", ()))

    def part(self, number: int) -> Part:
        """Begins a video, from nothing."""
        self.drop(number)
        part = Part(self.folder(number))
        for folder in (part.folder, part.scratch):
            folder.mkdir(parents=True)
        return part

    def drop(self, number: int) -> None:
        """Forgets a video."""
        shutil.rmtree(self.folder(number), ignore_errors=True)


class Staging:
    """The hidden folder of one export; a context manager that holds its lock."""

    def __init__(
        self,
        target: Path,
        signature: str,
        *,
        overwrite: bool,
        sources: Iterable[str] = (),
    ) -> None:
        """Touches nothing yet.

        Args:
            target: Folder that the export becomes.
            signature: Signature of all that the parts depend on; parts of an export of
                another signature are thrown away.
            overwrite: Whether an earlier export in the target may be replaced; it stays
                as it is until the new export is whole.
            sources: Paths of the dataset's media; a folder that holds one of them is
                never replaced.
        """
        self.target = target
        self._signature = signature
        self._overwrite = overwrite
        self._sources = sources
        self._root = target.parent / f".{target.name}.partial"
        # A lock beside the target would be left behind, or raced for when removed.
        name = f"export-{sha256(os.fsencode(target)).hexdigest()[:16]}.lock"
        self._lock = FileLock(assets.cache_dir() / "locks" / name)

    @property
    def tree(self) -> Path:
        """Folder that becomes the target."""
        return self._root / "tree"

    @property
    def parts(self) -> Parts:
        """The videos."""
        return Parts(self._root / "parts")

    def __enter__(self) -> Staging:
        try:
            self._open()
        except ExportError:
            self._lock.release()
            raise
        except OSError as error:
            self._lock.release()
            raise ExportError(
                f"{self.target.parent} can't be written ({error.strerror or error}); "
                "choose another folder"
            ) from error
        return self

    def _open(self) -> None:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ExportError(
                f"another export to {self.target} is under way; wait for it, or choose "
                "another folder"
            ) from error
        # An earlier run was killed while it replaced the target, or right after.
        if self._old.exists() and not self.target.exists():
            os.rename(self._old, self.target)
        elif self._old.exists():
            self._restore_other_files()
        if self._occupied():
            self._check_replaceable()
        job = self._root / "job.json"
        # Without a tree it was killed after the rename, and its files are gone.
        if not self.tree.is_dir() or _read_json(job) != self._signature:
            self._check_own()
            self.discard()
            self._root.mkdir()
            replace_file(job, dumps(self._signature))
            self.tree.mkdir()

    def _check_own(self) -> None:
        """Raises an error if the hidden folder holds what no export puts there."""
        if not self._root.is_dir():
            return
        own = {"job.json", ".job.json.new", "old", "parts", "tree"}
        if others := sorted({path.name for path in self._root.iterdir()} - own):
            raise ExportError(
                f"{self._root / others[0]} was not written by an export and is in the "
                "way of one; move it, or choose another folder"
            )

    def _occupied(self) -> bool:
        if not self.target.is_dir():
            return self.target.exists() or self.target.is_symlink()
        return self.target.is_symlink() or any(self.target.iterdir())

    def _check_replaceable(self) -> None:
        """Raises an error unless the target is an export that may be replaced."""
        if not self._overwrite:
            raise ExportError(
                f"{self.target} exists and is not empty; choose another folder, or "
                "overwrite it"
            )
        if manifest_files(self.target) is None:
            raise ExportError(
                f"{self.target} exists and is not a folder that an export has written "
                f"(it has no {MANIFEST} of one); choose another folder"
            )
        folder = os.path.realpath(self.target)
        for source in self._sources:
            # Of a link, both its own place and that of what it leads to count.
            for path in (os.path.abspath(source), os.path.realpath(source)):
                if Path(path).is_relative_to(folder):
                    raise ExportError(
                        f"{self.target} holds media of the dataset ({source}); choose "
                        "another folder"
                    )

    def __exit__(self, *_: object) -> None:
        if not any(self.parts.root.glob("*/part.json")):
            self.discard()  # there is nothing to go on from
        self._lock.release()

    def merge(self, split: str | None, numbers: Iterable[int]) -> Merge:
        """Moves the finished videos of a split into the tree.

        Args:
            split: Name of the split; None for an export without splits.
            numbers: Numbers of its videos; those that failed are passed over.
        """
        tree = self.tree / split if split else self.tree
        tree.mkdir(exist_ok=True)
        counts: Counter[str] = Counter()
        labels: set[str] = set()
        models: set[tuple[str, str]] = set()
        folders: list[Path] = []
        sizes: list[dict[str, int]] = []
        for folder in map(self.parts.folder, numbers):
            if not (folder / "part.json").exists():
                continue
            summary = json.loads((folder / "part.json").read_bytes())
            counts.update(summary["counts"])
            labels.update(summary["labels"])
            models.update(map(tuple, summary["models"]))
            sizes.append(summary["sizes"])
            _move_files(folder / "tree", tree)
            folders.append(folder)
        known = sorted(labels), sorted(models)
        return Merge(tree, split, counts, *known, folders, sizes)

    def discard(self) -> None:
        """Throws everything away but the target."""
        shutil.rmtree(self._root, ignore_errors=True)

    def publish(self) -> None:
        """Puts the whole export where it belongs, by one rename.

        Files of an earlier export are replaced; all others in its folder stay.
        """
        if self._occupied():
            self._check_replaceable()  # it may have been written to meanwhile
            for name in self._other_files(self.target):
                if os.path.lexists(self.tree / name):
                    raise ExportError(
                        f"{self.target / name} was not written by an export and is in "
                        "the way of one of its files; move it, or choose another folder"
                    )
            os.rename(self.target, self._old)
        os.replace(self.tree, self.target)
        self._restore_other_files()
        self.discard()

    def _other_files(self, folder: Path) -> list[str]:
        """Paths within a folder of the files that no export has written there."""
        replaced = manifest_files(folder) or set()
        names = (path.relative_to(folder).as_posix() for path in files_of(folder))
        return [name for name in names if name not in replaced]

    def _restore_other_files(self) -> None:
        """Moves what no export has written from the earlier export into the new one."""
        for name in self._other_files(self._old):
            _move(self._old / name, self.target / name)

    @property
    def _old(self) -> Path:
        """Returns where an overwritten export stays until the new one is in place."""
        return self._root / "old"


def _is_as_written(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Returns whether a file is gone, or is as the manifest of its export says."""
    path = folder / str(entry["path"])
    if not os.path.lexists(path):
        return True
    if "link" in entry or path.is_symlink():
        return path.is_symlink() and os.readlink(path) == entry.get("link")
    return path.stat().st_size == entry.get("bytes")


def _read_json(path: Path) -> Any:
    """Returns the value of a JSON file; None when it is not there, or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _move_files(source: Path, tree: Path) -> None:
    for path in files_of(source):
        _move(path, tree / path.relative_to(source))


def _move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, to)


def files_of(folder: Path) -> Iterator[Path]:
    """Yields the files and links below a folder, in the order of their names."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted([*names, *links]):
            yield Path(parent, name)


def manifest_files(folder: Path) -> set[str] | None:
    """Lists the files that an export has written into a folder, by its manifest.

    A file of another size than the manifest says is somebody else's by now.

    Returns:
        Paths within the folder, that of the manifest included; None when there is no
        manifest of an export.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not manifest["generator"].startswith(GENERATOR):
            return None
        written = (one for one in manifest["files"] if _is_as_written(folder, one))
        return {MANIFEST, *(str(entry["path"]) for entry in written)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
