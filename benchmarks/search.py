"""Measures the speed of search, the size of its index, and its accuracy.

Captions are put together at random from everyday words, common ones more often. A part
of them is embedded by the default model; the vectors of all are drawn from what that
shows: the vector of a caption is the sum of what its words contribute (least squares,
which explains most of the variance) and a random rest with the covariance of what it
doesn't explain. That makes a million vectors feasible without a GPU; ``--embed``
embeds all of them instead. Recall compares the first ten with those of an exact search
over the stored vectors, for queries embedded by the model. Times of queries don't
include embedding the query, which is given on its own.

With ``--regions``, regions are searched by their embeddings instead, as labels would
hold them: vectors of Patch-ioner's width, drawn with a spectrum that falls as that of
image features does. Queries are drawn like them (near), and with as much again in any
direction (far), since texts don't lie where images do.

    python -m benchmarks.search --sizes 10000 100000
    taskset -c 0,1 python -m benchmarks.search --sizes 1000000 --folder /tmp/index
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import md5
from pathlib import Path

import numpy as np
from bson import ObjectId

from fiftyone_regioncap.analysis.vocabulary import ATTRIBUTES, COLORS, NOUNS
from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.core.progress import ProgressBar
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding
from fiftyone_regioncap.search import Query
from fiftyone_regioncap.search.embedding import load
from fiftyone_regioncap.search.index import CaptionIndex
from fiftyone_regioncap.search.source import CaptionText, Changes

QUERIES = (
    "red car turning left",
    "a dog jumping over a fence",
    "man with a blue backpack",
    "old woman near a window",
    "boat on the river",
    "striped cat",
    "something that swims slowly",
    '"blue car" -truck',
)
RANDOM_QUERIES = 32


def _listed(text: str) -> list[str]:
    return text.split("; ")


VERBS = _listed(
    "walks; runs; jumps; stands; sits; turns; moves; drives; rides; flies; swims; "
    "climbs; falls; rolls; slides; spins; swings; waves; leans; rests; sways; "
    "drifts; glides; crosses; enters; leaves; stops; bends; kneels; lies; reaches; "
    "dances; looks; stares; hovers; floats; bounces"
)
WAYS = _listed(
    "to the left; to the right; towards the camera; away from the camera; slowly; "
    "quickly; across the scene; up the hill; down the slope; in circles; back and "
    "forth; steadily; upwards; downwards; around a corner; without stopping"
)
PLACES = _listed(
    "on the street; in the park; on the beach; near a wall; behind a fence; under a "
    "tree; in the water; on the grass; in a kitchen; on a stage; beside the road; in "
    "the snow; at the station; on a bridge; in a field; in front of a house; on the "
    "court; at sunset; in the rain; among the crowd; by the window; over the lake; "
    "in a tunnel; on the roof; inside a workshop; at the market; along the river; "
    "between parked cars"
)


def _common_first(words: Sequence[str]) -> tuple[list[str], list[float]]:
    """Words with cumulative weights that fall like those of a language."""
    ordered = sorted(words)
    random.Random(7).shuffle(ordered)
    weights = [1 / (rank + 5) for rank in range(len(ordered))]
    return ordered, list(itertools.accumulate(weights))


def captions(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Labels and captions, the same ones for the same seed."""
    rng = random.Random(seed)
    kinds = {
        "noun": _common_first(list(NOUNS)),
        "color": _common_first(list(COLORS)),
        "kind": _common_first([w for words in ATTRIBUTES.values() for w in words]),
        "verb": _common_first(VERBS),
        "way": _common_first(WAYS),
        "place": _common_first(PLACES),
    }

    def pick(kind: str) -> str:
        words, weights = kinds[kind]
        return rng.choices(words, cum_weights=weights)[0]

    for _ in range(count):
        noun = pick("noun")
        text = f"A {pick('kind')} {pick('color')} {noun} with a {pick('color')} "
        text += f"{pick('noun')} {pick('verb')} {pick('way')} {pick('place')}"
        for _ in range(rng.randrange(3)):
            text += f", near a {pick('kind')} {pick('noun')} that {pick('verb')} "
            text += pick(rng.choice(("way", "place")))
        yield noun, f"{text}."


class Synthetic:
    """Captions as a dataset would give them, ten a sample."""

    def __init__(self, count: int) -> None:
        self._count = count

    def read(self, since: object = None) -> Iterator[Changes[CaptionText]]:
        """Yields all captions; they never change."""
        texts = captions(self._count)
        for number in range(0, self._count, 10):
            yield Changes(
                _id("sample", number),
                None,
                [
                    CaptionText(str(_id("caption", number + place)), text, label, ())
                    for place, (label, text) in enumerate(itertools.islice(texts, 10))
                ],
            )

    def count_samples(self) -> int:
        """As many as were read."""
        return -(-self._count // 10)


def _id(*parts: object) -> ObjectId:
    return ObjectId(md5(repr(parts).encode()).digest()[:12])


class Drawn:
    """Draws vectors of captions that are like those that a model gives."""

    name = "drawn"

    def __init__(self, embedder, learn_from: int) -> None:
        texts = [text for _, text in captions(learn_from, seed=1)]
        vectors = embedder.embed(texts)
        words = sorted({word for text in texts for word in self._words(text)})
        self._places = {word: place for place, word in enumerate(words, start=1)}
        counts = self._counts(texts)
        ridge = counts.T @ counts + 3 * np.eye(counts.shape[1], dtype=np.float32)
        self._parts = np.linalg.solve(ridge, counts.T @ vectors)
        rest = vectors - counts @ self._parts
        total = np.square(vectors - vectors.mean(axis=0)).sum()
        self.explained = 1 - float(np.square(rest).sum() / total)
        self.dimension = vectors.shape[1]
        spread = rest.T @ rest / len(rest) + 1e-8 * np.eye(self.dimension)
        self._rest = np.linalg.cholesky(spread).T.astype(np.float32)
        self._rng = np.random.default_rng(0)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors that the texts might have, another one each time."""
        size = (len(texts), self.dimension)
        rest = self._rng.standard_normal(size, np.float32) @ self._rest
        vectors = self._counts(texts) @ self._parts + rest
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _counts(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.zeros((len(texts), len(self._places) + 1), np.float32)
        counts[:, 0] = 1
        for row, text in enumerate(texts):
            places = [self._places.get(word, 0) for word in self._words(text)]
            counts[row, places] = 1
        return counts

    @staticmethod
    def _words(text: str) -> set[str]:
        return set(re.findall(r"[a-z]+", text.lower()))


class Known:
    """Gives vectors of queries that were embedded before."""

    def __init__(self, name: str, queries: dict[str, np.ndarray]) -> None:
        self.name = name
        self.dimension = len(next(iter(queries.values())))
        self._vectors = {Query.parse(t).meaning: v for t, v in queries.items()}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of known texts."""
        return np.array([self._vectors[text] for text in texts])


def milliseconds(queries: Sequence[str], find: Callable[[str], object]) -> str:
    """Times queries, the better of two runs: median / 95 %, and of the CPU alone.

    On a machine that others use too, the CPU's time is nearer to what a quiet one
    takes; on a quiet one with two cores, it is the larger.
    """
    times = []
    for query in queries:
        runs = []
        for _ in range(2):
            began = time.perf_counter(), time.process_time()
            find(query)
            ended = time.perf_counter(), time.process_time()
            runs.append([(e - b) * 1000 for b, e in zip(began, ended, strict=True)])
        times.append(np.min(runs, axis=0))
    (wall, cpu), (wall_high, cpu_high) = np.quantile(times, (0.5, 0.95), axis=0)
    return f"{wall:.1f} / {wall_high:.1f}, CPU {cpu:.1f} / {cpu_high:.1f}"


def random_queries(count: int) -> list[str]:
    """Makes queries of two to five words from near the start of captions."""
    rng = random.Random(3)
    texts = [text.split() for _, text in captions(count, seed=99)]
    return [" ".join(words[2 : 4 + rng.randrange(4)]) for words in texts]


def megabytes(folder: Path, pattern: str) -> float:
    """Returns the size of a folder's files in MB."""
    return sum(f.stat().st_size for f in folder.rglob(pattern) if f.is_file()) / 1e6


def resident() -> float:
    """Returns this process's memory in MB, pages of mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e3


def measure(count: int, folder: Path, embedder, queries: dict) -> list[str]:
    """Measures one row of the table of captions."""
    index = CaptionIndex(folder)
    began = time.perf_counter()
    index.update(Synthetic(count))
    words_seconds = time.perf_counter() - began
    before = resident()
    began = time.perf_counter()
    with ProgressBar() as bar:
        store = index.embed(embedder, bar)
    vector_seconds = time.perf_counter() - began
    known = Known(embedder.name, queries)
    texts = list(queries)

    def hits(mode: str) -> Callable[[str], object]:
        return lambda text: index.search(text, 10, mode=mode, embedder=known)

    recall = []
    for vector in queries.values():
        exact = {row for row, _ in store.search(vector, 10, exact=True)}
        recall.append(len(exact & {row for row, _ in store.search(vector, 10)}) / 10)
    cells = [
        f"{count:,}",
        f"{words_seconds:.0f}",
        f"{vector_seconds:.0f}",
        f"{megabytes(folder / 'words', '*'):.0f}",
        f"{megabytes(folder, '*.sqlite*'):.0f}",
        f"{megabytes(folder / _only_folder(folder), '*'):.0f}",
    ]
    for mode in ("text", "semantic", "hybrid"):
        cells.append(milliseconds(texts, hits(mode)))
    cells += [f"{np.mean(recall):.3f}", f"{before:.0f} / {resident():.0f}"]
    index.close()
    return cells


class SyntheticRegions:
    """Source of synthetic region embeddings, ten a sample."""

    space = EmbeddingSpace("patchioner", "drawn", "drawn", 768)

    def __init__(self, count: int) -> None:
        self._count = count
        self._scale = (1 / np.sqrt(np.arange(1, 769))).astype(np.float32)

    def vectors(self, count: int, seed: int) -> np.ndarray:
        """Vectors of length 1, the same ones for the same seed."""
        rng = np.random.default_rng(seed)
        vectors = rng.standard_normal((count, 768), np.float32) * self._scale
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def embeddings(self, since: object = None) -> Iterator[Changes[tuple]]:
        """Yields all embeddings; they never change."""
        for number in range(0, self._count, 10):
            vectors = self.vectors(10, number)
            yield Changes(
                _id("sample", number),
                None,
                [
                    (
                        str(_id("caption", number + place)),
                        RegionEmbedding.of(vector, self.space),
                    )
                    for place, vector in enumerate(vectors)
                ],
            )


def measure_regions(count: int, folder: Path) -> list[str]:
    """Measures one row of the table of regions."""
    index = CaptionIndex(folder)
    index.update(Synthetic(count))
    source = SyntheticRegions(count)
    began = time.process_time()
    for _ in source.embeddings():
        pass
    made = time.process_time() - began
    before = resident()
    began = time.process_time()
    index.update_regions(source)
    took = time.process_time() - began - made
    store = index.regions._open(source.space)  # no state without a time of change
    near = source.vectors(40, seed=count + 1)
    rest = np.random.default_rng(1).standard_normal(near.shape, np.float32)
    far = near + rest / np.linalg.norm(rest, axis=1, keepdims=True)
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    recall: dict[str, list[float]] = {"near": [], "far": []}
    times = []
    for kind, queries in (("near", near), ("far", far)):
        for query in queries:
            exact = {row for row, _ in store.search(query, 10, exact=True)}
            began = time.process_time()
            found = {row for row, _ in store.search(query, 10)}
            times.append((time.process_time() - began) * 1000)
            recall[kind].append(len(exact & found) / 10)
    middle, high = np.quantile(times, (0.5, 0.95))
    size = len(RegionEmbedding.of(near[0], source.space).data)
    cells = [f"{count:,}", f"{size}", f"{took:.0f}"]
    cells.append(f"{megabytes(folder / 'regions', '*'):.0f}")
    cells.append(f"{middle:.1f} / {high:.1f}")
    cells.append(f"{np.mean(recall['near']):.3f} / {np.mean(recall['far']):.3f}")
    cells.append(f"{before:.0f} / {resident():.0f}")
    index.close()
    return cells


def _only_folder(folder: Path) -> str:
    """Returns the folder of the vectors, named after their model."""
    return next(f.name for f in folder.iterdir() if f.is_dir() and f.name != "words")


def main() -> None:
    """Measures each size and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--embed", action="store_true", help="embed all captions")
    parser.add_argument("--learn-from", type=int, default=4000)
    parser.add_argument("--folder", type=Path, help="where indexes are made and stay")
    parser.add_argument("--regions", action="store_true", help="search regions instead")
    arguments = parser.parse_args()
    if arguments.regions:
        print(
            "regions | bytes a label | indexed CPU s | MB | query CPU ms, median / 95 "
            "% | recall@10 near / far | RSS MB before / after"
        )
        print("---: | " * 6 + "---:")
        for size in arguments.sizes:
            with tempfile.TemporaryDirectory() as temporary:
                folder = (arguments.folder or Path(temporary)) / str(size)
                print(" | ".join(measure_regions(size, folder)), flush=True)
        return
    model = load()
    model.embed(QUERIES)
    texts = [*QUERIES, *random_queries(RANDOM_QUERIES)]
    began = time.perf_counter()
    vectors = [model.embed([Query.parse(text).meaning])[0] for text in texts]
    per_query = (time.perf_counter() - began) / len(texts) * 1000
    queries = dict(zip(texts, vectors, strict=True))
    print(f"embedding a query: {per_query:.1f} ms")
    embedder = model
    if not arguments.embed:
        embedder = Drawn(model, arguments.learn_from)
        print(f"vectors are drawn; words explain {embedder.explained:.0%} of variance")
    print(
        "captions | words s | vectors s | words MB | texts MB | vectors MB | words ms "
        "| meaning ms | both ms | recall@10 | RSS MB before / with vectors"
    )
    print("---: | " * 10 + "---:")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.folder or Path(temporary)
            print(" | ".join(measure(size, folder / str(size), embedder, queries)))


if __name__ == "__main__":
    main()
