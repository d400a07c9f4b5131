"""The catalog of indexed captions: which row each has, and its text then.

Rows number the captions of a field from 0, for the text index and the vectors. Updates
read the samples that changed since the last one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from fiftyone_regioncap.search.source import CaptionText, FieldSource, next_checkpoint
from fiftyone_regioncap.search.text_index import TextIndex, TextWriter

_SCHEMA = """
create table if not exists captions (
    row integer primary key, id blob unique, sample blob, hash integer, text text
);
create index if not exists captions_by_sample on captions (sample);
create table if not exists samples (id blob primary key) without rowid;
create table if not exists state (name text primary key, value) without rowid;
"""
_ROWS_AT_ONCE = 500  # SQLite's limit of parameters in one statement is 999


@dataclass(frozen=True)
class CatalogEntry:
    """A caption that was indexed.

    Attributes:
        row: Number of the caption.
        id: Id of its label.
        sample_id: Id of its sample.
        caption: The full text.
    """

    row: int
    id: str
    sample_id: str
    caption: str


class Catalog:
    """The captions of one field, in a SQLite file.

    Args:
        path: Path of the file, which is made if it doesn't exist.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode = wal")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return int(self._get("version") or 0)

    @property
    def checkpoint(self) -> datetime | None:
        """Time that the next update begins to read at; None before the first."""
        time = self._get("checkpoint")
        return None if time is None else datetime.fromisoformat(str(time))

    @property
    def rows(self) -> int:
        """One more than the largest row."""
        found = self._db.execute("select max(row) from captions").fetchone()[0]
        return 0 if found is None else found + 1

    def __len__(self) -> int:
        return self._db.execute("select count(*) from captions").fetchone()[0]

    def update(self, source: FieldSource, index: TextIndex) -> int:
        """Reads what changed, and updates the text index too.

        When this is interrupted, the next update does the same again.

        Returns:
            Number of captions that are new, changed or gone.
        """
        since = self.checkpoint
        latest: datetime | None = None
        changes = 0
        self._db.execute("begin immediate")
        try:
            with index.writing() as writer:
                # An update that was interrupted may have left texts there.
                writer.truncate(self.rows)
                for change in source.read(since):
                    if change.modified is not None:
                        latest = max(latest or change.modified, change.modified)
                    changes += self._update_sample(change.sample, change.items, writer)
                changes += self._remove_deleted(source, writer)
            if changes:
                self._set("version", self.version + 1)
            if latest is not None:
                self._set("checkpoint", next_checkpoint(latest).isoformat())
            self._db.execute("commit")
        except BaseException:
            self._db.execute("rollback")
            raise
        if changes:
            # Else the log keeps a copy of all that was written.
            self._db.execute("pragma wal_checkpoint(truncate)")
        return changes

    def _update_sample(
        self, sample: ObjectId, texts: Iterable[CaptionText], writer: TextWriter
    ) -> int:
        """Compares a sample's captions with those in the catalog."""
        key = sample.binary
        self._db.execute("insert or ignore into samples values (?)", (key,))
        old = {
            label: (row, hash_)
            for row, label, hash_ in self._db.execute(
                "select row, id, hash from captions where sample = ?", (key,)
            )
        }
        changes = 0
        for text in texts:
            label = ObjectId(text.id).binary
            row, hash_ = old.pop(label, (None, None))
            if hash_ == text.hash:
                continue
            if row is None:
                # The label may have been moved here from another sample.
                changes += self._remove(self._rows_where("id", label), writer)
                row = self.rows
            else:
                writer.remove(row)
            self._db.execute(
                "insert or replace into captions values (?, ?, ?, ?, ?)",
                (row, label, key, text.hash, text.caption),
            )
            writer.add(row, (text.caption, text.label, *text.tags))
            changes += 1
        return changes + self._remove([row for row, _ in old.values()], writer)

    def _remove_deleted(self, source: FieldSource, writer: TextWriter) -> int:
        """Removes the captions of samples that are no more."""
        known = self._db.execute("select count(*) from samples").fetchone()[0]
        if known == source.count_samples():
            return 0
        present = {sample.binary for sample in source.sample_ids()}
        removed = 0
        for (sample,) in self._db.execute("select id from samples").fetchall():
            if sample not in present:
                removed += self._remove(self._rows_where("sample", sample), writer)
                self._db.execute("delete from samples where id = ?", (sample,))
        return removed

    def _rows_where(self, column: str, key: bytes) -> list[int]:
        query = f"select row from captions where {column} = ?"
        return [row for (row,) in self._db.execute(query, (key,))]

    def _remove(self, rows: Sequence[int], writer: TextWriter) -> int:
        for row in rows:
            writer.remove(row)
            self._db.execute("delete from captions where row = ?", (row,))
        return len(rows)

    def hashes(self) -> NDArray[np.int64]:
        """Hashes of the captions by row; 0 for empty rows."""
        hashes = np.zeros(self.rows, np.int64)
        with closing(self._db.execute("select row, hash from captions")) as found:
            while chunk := found.fetchmany(10_000):
                rows, values = zip(*chunk, strict=True)
                hashes[list(rows)] = values
        return hashes

    def entries(self, rows: Sequence[int]) -> dict[int, CatalogEntry]:
        """Reads the captions of some rows; empty rows are left out."""
        return {
            row: CatalogEntry(row, key.hex(), sample.hex(), caption)
            for row, key, sample, caption in self._select("row", rows)
        }

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Finds rows by label id; captions that are not indexed are left out."""
        keys = [bytes.fromhex(label_id) for label_id in ids]
        return {key.hex(): row for row, key, _, _ in self._select("id", keys)}

    def _select(
        self, column: str, values: Sequence[int] | Sequence[bytes]
    ) -> Iterator[tuple[int, bytes, bytes, str]]:
        for start in range(0, len(values), _ROWS_AT_ONCE):
            chunk = values[start : start + _ROWS_AT_ONCE]
            marks = ",".join("?" * len(chunk))
            yield from self._db.execute(
                "select row, id, sample, text from captions "
                f"where {column} in ({marks})",
                [v if isinstance(v, bytes) else int(v) for v in chunk],
            )

    def _get(self, name: str) -> str | int | None:
        query = "select value from state where name = ?"
        found = self._db.execute(query, (name,)).fetchone()
        return None if found is None else found[0]

    def _set(self, name: str, value: str | int) -> None:
        self._db.execute("insert or replace into state values (?, ?)", (name, value))
