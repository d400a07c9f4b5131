"""Reads predictions in our form and in those that authors publish, and pairs them.

Lines that have an id are found by it. Published files often have none, and rely on the
order of shards, which pairs captions with wrong references when it changes: their lines
are found by the reference that they repeat, and by the name of the image or video.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fiftyone_regioncap.evaluation.benchmarks.base import Answer, Item
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    is_lines,
    read_json,
    read_places,
)

_IDS = ("id", "item", "uid", "question_id", "annotation_id")
_TEXTS = ("pred", "prediction", "response", "caption")
_NO_IDS = frozenset({"query"})
"""Keys of published files that are no ids: DAM's hold the question that was asked."""

SHOWN = 10
"""Number of ids that a report names of each kind of problem."""


@dataclass
class Problems:
    """What is wrong with predictions; ids are named up to a number, and all counted.

    Attributes:
        counts: Number of items by problem.
        first: The first ids by problem.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str, item: str) -> None:
        """Notes one more."""
        self.counts[problem] = self.counts.get(problem, 0) + 1
        names = self.first.setdefault(problem, [])
        if len(names) < SHOWN:
            names.append(item)


class Predictions:
    """Predictions by item; of JSON lines only the places are kept in memory.

    Args:
        path: A file of JSON lines, a JSON list of such objects, an object of
            predictions by id, or a folder of such files; read when they are paired.
    """

    def __init__(self, path: Path) -> None:
        self.problems = Problems()
        self._files: list[BinaryIO] = []
        self._by_id: dict[str, list[Any]] = {}
        self._by_answer: dict[str, deque[Any]] = {}
        self._taken: set[str] = set()
        self._failed: set[str] = set()
        self._unread = [path]
        if path.is_dir():
            found = (one for one in path.iterdir() if "json" in one.suffix)
            self._unread = sorted(found, reverse=True)

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def pair(
        self, items: Iterable[Item], *, whole: bool = True, skip: bool = False
    ) -> Iterator[Answer]:
        """Yields each item with its prediction; problems are noted on the way.

        Args:
            items: Items, in any order.
            whole: Whether these are all items, so that what is left over is of none.
            skip: Whether items without a prediction are left out.

        Raises:
            BenchmarkError: If the files are of no such form, or none of the predictions
                is for an item.
        """
        while self._unread:
            self._index(self._unread.pop())
        count = 0
        for item in items:
            record = self._take(item)
            if record is None:
                self.problems.add("missing", item.id)
                if not skip:
                    yield Answer(item, missing=True)
                continue
            count += 1
            value, error = _prediction(record)
            if error is not None:
                self.problems.add("failed", f"{item.id} ({error[:80]})")
            yield Answer(item, value, missing=error is not None)
        if whole:
            self._note_left_over()
        if not (self._by_id or self._by_answer):
            raise BenchmarkError("there are no predictions: no JSON, and no JSON lines")
        if not count:
            known = next(iter([*self._by_id, *self._by_answer]), "none")
            raise BenchmarkError(
                f"no prediction is for an item of this benchmark; the first one is for "
                f"{known[:60]!r}"
            )

    def _index(self, path: Path) -> None:
        if is_lines(path):
            file = len(self._files)
            for place, record in read_places(path):
                self._add(record, (file, place), path)
            self._files.append(path.open("rb"))
            return
        document = _read_noting_doubles(path, self.problems)
        if isinstance(document, dict):
            for key, value in document.items():
                if key not in _NO_IDS:
                    self._by_id.setdefault(key, []).append({"pred": value})
        else:
            for _, record in read_places(path):
                self._add(record, record, path)

    def _add(self, record: Any, place: Any, path: Path) -> None:
        if not isinstance(record, dict):
            raise BenchmarkError(f"{path} has a prediction that is no JSON object")
        key = next((record[name] for name in _IDS if name in record), None)
        if key is not None:
            key = str(key)
            if key in self._failed:  # and was asked again
                self._failed.remove(key)
                del self._by_id[key]
            self._by_id.setdefault(key, []).append(place)
            if record.get("error"):
                self._failed.add(key)
            return
        answer = record.get("Answer", record.get("caption"))
        if not isinstance(answer, str):
            raise BenchmarkError(
                f"{path} has a prediction without an id and without the reference "
                "(`Answer`) that published files repeat"
            )
        self._by_answer.setdefault(answer, deque()).append(place)

    def _take(self, item: Item) -> dict[str, Any] | None:
        if item.id in self._by_id:
            places = self._by_id[item.id]
            if len(places) > 1 and item.id not in self._taken:
                self.problems.add("doubled", item.id)
            self._taken.add(item.id)
            return self._read(places[-1])
        waiting = self._by_answer.get(item.references[0] if item.references else "")
        for place in waiting or ():
            record = self._read(place)
            media = record.get("video", record.get("image"))
            if media is None or Path(str(media)).name == Path(item.media).name:
                waiting.remove(place)  # type: ignore[union-attr]  # it has some
                return record
        return None

    def _read(self, place: Any) -> dict[str, Any]:
        if isinstance(place, dict):
            return place
        file, start = place
        self._files[file].seek(start)
        return json.loads(self._files[file].readline())

    def _note_left_over(self) -> None:
        for key in self._by_id:
            if key not in self._taken:
                self.problems.add("unknown", key)
        for answer, places in self._by_answer.items():
            for _ in places:
                self.problems.add("unknown", answer[:60])


def _prediction(record: dict[str, Any]) -> tuple[Any, str | None]:
    """Returns what was predicted, and why nothing was."""
    error = record.get("error")
    value = next((record[name] for name in _TEXTS if name in record), None)
    if isinstance(value, str) and value.startswith("Error:"):
        error = value
    if value is None and error is None:
        error = "there is no prediction"
    return ("" if error else value), error


def _read_noting_doubles(path: Path, problems: Problems) -> Any:
    """Reads JSON, whose objects may name a key twice; the last value counts."""

    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(entries)
        if len(made) < len(entries):
            names = [name for name, _ in entries]
            for name in made:
                if names.count(name) > 1:
                    problems.add("doubled", name)
        return made

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return read_json(path)  # which says what is wrong
