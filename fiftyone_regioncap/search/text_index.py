"""Searches full text: stemmed words ranked by BM25, phrases, exclusion.

The engine is Tantivy, which keeps its index on disk and, unlike SQLite's FTS5, doesn't
score every caption that has a word: with 300,000 captions, of which a fifth have the
word, its first hundred take it 0.3 ms and FTS5 200 ms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import tantivy
from numpy.typing import NDArray
from tantivy import Filter, Occur, TextAnalyzerBuilder, Tokenizer

from fiftyone_regioncap.search.normalization import normalize, split_word
from fiftyone_regioncap.search.query import Query

# One field for all: a union over fields for each word would keep the engine from
# skipping what can't be among the best. Values of a field are apart from each other,
# so that no phrase reaches from one into the next.
_FIELD = "text"
_HEAP = 64 * 2**20  # bytes that the writer fills before it writes a segment
_ANALYZER_NAME = "caption"
_LONGEST_WORD = 80
_MOST = 2**31 - 1


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
    """Adds texts to an index and removes them.

    The engine's writer is opened once there is something to write: opening it and
    committing takes longer than most searches.

    Args:
        index: Index of the engine.
        schema: Schema of the index.
    """

    def __init__(self, index: tantivy.Index, schema: tantivy.Schema) -> None:
        self._index = index
        self._schema = schema
        self._opened: tantivy.IndexWriter | None = None

    @property
    def _writer(self) -> tantivy.IndexWriter:
        if self._opened is None:
            self._opened = self._index.writer(heap_size=_HEAP, num_threads=1)
        return self._opened

    def add(self, row: int, values: Iterable[str]) -> None:
        """Adds the texts of a row that has none.

        Args:
            row: Number of the row, from 0.
            values: The caption, the label, each tag.
        """
        document = tantivy.Document()
        document.add_unsigned("row", row)
        for value in values:
            document.add_text(_FIELD, normalize(value))
        self._writer.add_document(document)

    def remove(self, row: int) -> None:
        """Removes the texts of a row, if it has any."""
        query = tantivy.Query.term_query(self._schema, "row", row)
        self._writer.delete_documents_by_query(query)

    def truncate(self, rows: int) -> None:
        """Removes the texts of this row and those after it, if there are any."""
        query = tantivy.Query.range_query(
            self._schema, "row", tantivy.FieldType.Unsigned, rows, None
        )
        if self._index.searcher().search(query, limit=1).hits:
            self._writer.delete_documents_by_query(query)

    def commit(self) -> None:
        """Makes the changes, if there are any, visible to new searches."""
        if self._opened is not None:
            self._opened.commit()
            self._opened.wait_merging_threads()
            self._index.reload()

    def rollback(self) -> None:
        """Takes the changes back."""
        if self._opened is not None:
            self._opened.rollback()


class TextIndex:
    """The words of captions by row, in a folder.

    Args:
        folder: Folder of the index, which is made if it doesn't exist.

    Raises:
        ValueError: If the folder holds something else, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        builder = tantivy.SchemaBuilder()
        builder.add_unsigned_field("row", indexed=True, fast=True)
        builder.add_text_field(_FIELD, tokenizer_name=_ANALYZER_NAME)
        self._schema = builder.build()
        self._index = tantivy.Index(self._schema, path=str(folder))
        self._words = _analyzer()
        self._index.register_tokenizer(_ANALYZER_NAME, self._words)

    @contextmanager
    def writing(self) -> Iterator[TextWriter]:
        """Changes the index; all at once at the end, or not at all."""
        self._index.reload()  # what other processes have committed
        writer = TextWriter(self._index, self._schema)
        try:
            yield writer
        except BaseException:
            writer.rollback()
            raise
        writer.commit()

    def search(
        self, query: Query, k: int, allowed: Collection[int] | None = None
    ) -> dict[int, float]:
        """Finds the best rows and their BM25 scores, best first.

        Captions with all words come before those with some of them. In scripts without
        blanks, words are pairs of neighboring characters; captions that have all the
        characters come next, as parts of words are often left out ("black dog").

        Args:
            query: Query to search for.
            k: Greatest number of rows.
            allowed: The only rows to return; None for all.
        """
        words = [part for word in query.words for part in split_word(word)]
        characters = [c for word in query.words for c in normalize(word).split()]
        demands = self._demands(query)

        def ranked(occur: Occur, wanted: Sequence[str]) -> dict[int, float]:
            parts = [*self._parts(occur, wanted), *demands]
            return self._ranked(tantivy.Query.boolean_query(parts), k, allowed)

        found = ranked(Occur.Must, words)
        more = [(Occur.Must, characters)] if characters != words else []
        more += [(Occur.Should, words)] if len(words) > 1 else []
        for occur, wanted in more:
            if len(found) < k:
                for row, score in ranked(occur, wanted).items():
                    found.setdefault(row, score)
        return dict(islice(found.items(), k))

    def matching(self, rows: NDArray[np.int64], query: Query) -> set[int]:
        """Returns the rows that have the query's phrases and nothing it excludes."""
        if not query.phrases and not query.excluded:
            return set(rows.tolist())
        among = tantivy.Query.term_set_query(self._schema, "row", rows.tolist())
        demands = [(Occur.Must, among), *self._demands(query)]
        wanted = tantivy.Query.boolean_query(demands)
        return set(self._ranked(wanted, len(rows), None))

    def _ranked(
        self, query: tantivy.Query, k: int, allowed: Collection[int] | None
    ) -> dict[int, float]:
        """Returns the first k rows with their scores, best first."""
        searcher = self._index.searcher()
        limit = max(k, 1)
        while True:
            hits = searcher.search(query, limit=limit, count=False).hits
            rows = searcher.fast_field_values("row", [address for _, address in hits])
            found = {
                int(row): float(score)
                for row, (score, _) in zip(rows, hits, strict=True)
                if row is not None and (allowed is None or row in allowed)
            }
            if allowed is None or len(found) >= k or len(hits) < limit:
                return dict(islice(found.items(), k))
            limit = min(limit * 8, _MOST)

    def _demands(self, query: Query) -> list[tuple[Occur, tantivy.Query]]:
        """Returns the query's phrases, and what it excludes."""
        return [
            *self._parts(Occur.Must, query.phrases),
            *self._parts(Occur.MustNot, query.excluded),
        ]

    def _parts(
        self, occur: Occur, texts: Iterable[str]
    ) -> Iterator[tuple[Occur, tantivy.Query]]:
        """Words and phrases for the engine; texts without a word are left out.

        They are put together from terms and never from text. What people separate by
        blanks may still be several words, as "t-shirt" is.
        """
        for text in texts:
            words = self._words.analyze(normalize(text))
            if len(words) == 1:
                yield occur, tantivy.Query.term_query(self._schema, _FIELD, words[0])
            elif words:
                phrase = tantivy.Query.phrase_query(self._schema, _FIELD, [*words])
                yield occur, phrase
