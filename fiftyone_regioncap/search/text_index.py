"""Full-text search: stemmed words ranked by BM25, phrases, exclusion.

The engine is Tantivy, which keeps its index on disk and, unlike SQLite's FTS5, doesn't
score every caption that has a word: with 300,000 captions, of which a fifth have the
word, its first hundred take it 0.3 ms and FTS5 200 ms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tantivy
from numpy.typing import NDArray
from tantivy import Filter, Occur, TextAnalyzerBuilder, Tokenizer

from fiftyone_regioncap.search.query import Query

# One field for all: a union over fields for each word would keep the engine from
# skipping what can't be among the best. Values of a field are apart from each other,
# so that no phrase reaches from one into the next.
_FIELD = "text"
_HEAP = 64 * 2**20  # bytes that the writer fills before it writes a segment
_ANALYZER_NAME = "caption"
_LONGEST_WORD = 80
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Text:
    """What is indexed of one caption.

    Attributes:
        row: its number, from 0.
        values: the caption, the label, each tag.
    """

    row: int
    values: Sequence[str]


def _analyzer() -> tantivy.TextAnalyzer:
    """Words in lower case, without accents, and without English endings."""
    return (
        TextAnalyzerBuilder(Tokenizer.simple())
        .filter(Filter.remove_long(_LONGEST_WORD))
        .filter(Filter.lowercase())
        .filter(Filter.ascii_fold())
        .filter(Filter.stemmer("English"))
        .build()
    )


class TextWriter:
    """Puts texts into an index and takes them out.

    Args:
        writer: the engine's.
        schema: of the index.
    """

    def __init__(self, writer: tantivy.IndexWriter, schema: tantivy.Schema) -> None:
        self._writer = writer
        self._schema = schema

    def add(self, text: Text) -> None:
        """Writes a text of a row that has none."""
        document = tantivy.Document()
        document.add_unsigned("row", text.row)
        for value in text.values:
            document.add_text(_FIELD, value)
        self._writer.add_document(document)

    def remove(self, row: int) -> None:
        """Removes the text of a row, if it has one."""
        query = tantivy.Query.term_query(self._schema, "row", row)
        self._writer.delete_documents_by_query(query)

    def truncate(self, rows: int) -> None:
        """Removes the texts of this row and those after it."""
        query = tantivy.Query.range_query(
            self._schema, "row", tantivy.FieldType.Unsigned, rows, None
        )
        self._writer.delete_documents_by_query(query)


class TextIndex:
    """The words of captions by row, in a folder.

    Args:
        folder: is made when it doesn't exist.

    Raises:
        ValueError: If the folder holds something else, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._schema = self._make_schema()
        self._index = tantivy.Index(self._schema, path=str(folder))
        self._index.register_tokenizer(_ANALYZER_NAME, _analyzer())
        self._words = _analyzer()

    @staticmethod
    def _make_schema() -> tantivy.Schema:
        builder = tantivy.SchemaBuilder()
        builder.add_unsigned_field("row", indexed=True, fast=True)
        builder.add_text_field(_FIELD, tokenizer_name=_ANALYZER_NAME)
        return builder.build()

    @contextmanager
    def writing(self) -> Iterator[TextWriter]:
        """Changes the index; all at once at the end, or not at all."""
        writer = self._index.writer(heap_size=_HEAP, num_threads=1)
        try:
            yield TextWriter(writer, self._schema)
        except BaseException:
            writer.rollback()
            raise
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()

    def search(
        self, query: Query, k: int, allowed: Collection[int] | None = None
    ) -> list[tuple[int, float]]:
        """The best rows and their BM25 scores, best first.

        Captions with all words come before those with some of them.

        Args:
            query: what to look for.
            k: the most rows.
            allowed: the only rows to give; None for all.
        """
        found = dict(self._ranked(self._boolean(query, every=True), k, allowed))
        if len(found) < k and len(query.words) > 1:
            for row, score in self._ranked(
                self._boolean(query, every=False), k, allowed
            ):
                if len(found) < k:
                    found.setdefault(row, score)
        return list(found.items())

    def matching(self, rows: NDArray[np.int64], query: Query) -> set[int]:
        """Which of the rows have the query's phrases and nothing that it excludes."""
        if not query.phrases and not query.excluded:
            return set(rows.tolist())
        among = tantivy.Query.term_set_query(self._schema, "row", rows.tolist())
        demands = self._demands(query)
        wanted = tantivy.Query.boolean_query([(Occur.Must, among), *demands])
        return {row for row, _ in self._ranked(wanted, len(rows), None)}

    def _ranked(
        self, query: tantivy.Query, k: int, allowed: Collection[int] | None
    ) -> list[tuple[int, float]]:
        searcher = self._index.searcher()
        limit = max(k, 1)
        while True:
            hits = searcher.search(query, limit=limit, count=False).hits
            rows = searcher.fast_field_values("row", [address for _, address in hits])
            found = [
                (int(row), float(score))
                for row, (score, _) in zip(rows, hits, strict=True)
                if row is not None and (allowed is None or row in allowed)
            ]
            if allowed is None or len(found) >= k or len(hits) < limit:
                return found[:k]
            limit = min(limit * 8, _MOST)

    def _boolean(self, query: Query, *, every: bool) -> tantivy.Query:
        """The query for the engine, put together from terms and never from text."""
        occur = Occur.Must if every or len(query.words) == 1 else Occur.Should
        words = [
            (occur, part)
            for word in query.words
            if (part := self._part(word)) is not None
        ]
        return tantivy.Query.boolean_query([*words, *self._demands(query)])

    def _demands(self, query: Query) -> list[tuple[Occur, tantivy.Query]]:
        return [
            (occur, part)
            for occur, texts in (
                (Occur.Must, query.phrases),
                (Occur.MustNot, query.excluded),
            )
            for text in texts
            if (part := self._part(text)) is not None
        ]

    def _part(self, text: str) -> tantivy.Query | None:
        """A word or phrase; None where there is no word in it.

        What people separate by blanks may still be several words, as "t-shirt" is.
        """
        words = self._words.analyze(text)
        if not words:
            return None
        if len(words) == 1:
            return tantivy.Query.term_query(self._schema, _FIELD, words[0])
        return tantivy.Query.phrase_query(self._schema, _FIELD, [*words])
