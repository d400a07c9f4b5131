"""LVIS and PACO keywords: objects and parts named in a word or phrase.

As Osprey (arXiv 2312.10032) made the sets. Its cleaning of texts drops the object of
"object:part"; PixelRefer's (arXiv 2510.23603) doesn't, and is what newer rows are by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fiftyone_regioncap.evaluation.benchmarks.base import (
    Answer,
    Benchmark,
    File,
    Item,
    Region,
    Scores,
    Tools,
    published,
)
from fiftyone_regioncap.evaluation.benchmarks.metrics import Means, word_iou
from fiftyone_regioncap.evaluation.benchmarks.reading import find, read_records
from fiftyone_regioncap.search.embedding import TextEmbedder

_AT_ONCE = 64
_HUB = "huggingface.co/datasets/sunshine-lwt/Osprey-ValData"
_TO_BLANKS = str.maketrans("_:,.()", "      ")


def clean_pixelrefer(text: str) -> str:
    """Cleans a prediction or a reference as PixelRefer does."""
    return text.translate(_TO_BLANKS).strip().lower()


def clean_osprey(text: str) -> str:
    """Cleans a prediction as Osprey does, which keeps what follows the first colon."""
    said = text.split(":")[1] if ":" in text else text
    return said.translate(str.maketrans(".:,", "   "))


def clean_osprey_reference(text: str) -> str:
    """Cleans a reference as Osprey does."""
    return text.translate(str.maketrans("_:", "  "))


CLEANINGS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "": (clean_pixelrefer, clean_pixelrefer),
    "osprey_": (clean_osprey, clean_osprey_reference),
}
"""What a metric's name begins with, and how predictions and references are cleaned."""


def load(folder: Path, pattern: str) -> Iterator[Item]:
    """Reads the objects of the file, one by one."""
    number = 0
    for image in read_records(find(folder, pattern)):
        pairs = zip(image["categories"], image["annotations"], strict=True)
        for name, annotation in pairs:
            region = Region(annotation["segmentation"])
            yield Item(str(number), image["file_name"], {0: region}, (name,))
            number += 1


def score(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Compares names by sentence similarity and by the IoU of their words."""
    embedder = tools.need_embedder()
    means, each = Means(), {}
    batch: list[Answer] = []

    def finish() -> None:
        for prefix, (clean, clean_reference) in CLEANINGS.items():
            said = [clean(one.text) for one in batch]
            truth = [clean_reference(one.item.references[0]) for one in batch]
            similarities = _similarities(embedder, said, truth)
            for one, a, b, value in zip(batch, said, truth, similarities, strict=True):
                iou = word_iou(a.lower(), b.lower())
                means.add(
                    **{f"{prefix}similarity": value, f"{prefix}semantic_iou": iou}
                )
                if not prefix:
                    each[one.item.id] = value
        batch.clear()

    for answer in answers:
        batch.append(answer)
        if len(batch) == _AT_ONCE:
            finish()
    finish()
    return Scores(means.result(), each)


def _similarities(
    embedder: TextEmbedder, said: list[str], truth: list[str]
) -> list[float]:
    if not said:
        return []
    texts = sorted({*said, *truth})
    vectors = dict(zip(texts, embedder.embed(texts), strict=True))
    return [
        float(np.dot(vectors[a], vectors[b])) for a, b in zip(said, truth, strict=True)
    ]


def _declare(name: str, title: str, what: str, file: str, size: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        summary=f"Names {what} in a word or phrase.",
        unit="image region",
        size=size,
        license="annotations of LVIS and PACO CC BY 4.0; COCO's pictures, Flickr terms",
        files=(File(file, _HUB),),
        load=partial(load, pattern=file),
        score=score,
        metric="Cosine of sentence embeddings, and IoU of words; means over objects.",
        prompt="What is the category of this region? Using only one word or phrase.",
        needs=frozenset({"sentence embeddings"}),
        published=ROWS[name],
        traps=(
            "Osprey's cleaning drops the object of `object:part`: `osprey_similarity` "
            "and `osprey_semantic_iou` are by it, the others by PixelRefer's.",
        ),
    )


_COLUMNS = "similarity semantic_iou"
_DAM = "DAM (arXiv 2504.16072), Table 2"
_PIXELREFER = "PixelRefer (arXiv 2510.23603), Table 1"
ROWS = {
    "lvis-keywords": (
        *published(
            _COLUMNS,
            _DAM,
            ("LLaVA-7B", "49.0 19.8"),
            ("Shikra", "49.7 19.8"),
            ("GPT4RoI", "51.3 12.0"),
            ("Osprey", "65.2 38.2"),
            ("Ferret-13B", "65.0 37.8"),
            ("VP-SPHINX", "86.0 61.2"),
            ("VP-LLaVA", "86.7 61.5"),
            ("DAM-8B", "89.0 77.7"),
        ),
        *published(
            _COLUMNS,
            _PIXELREFER,
            ("PAM-3B", "88.6 78.3"),
            ("PixelRefer-2B", "89.8 82.5"),
            ("PixelRefer-7B", "90.5 82.7"),
        ),
    ),
    "paco-keywords": (
        *published(
            _COLUMNS,
            _DAM,
            ("LLaVA-7B", "42.2 14.6"),
            ("Shikra", "43.6 11.4"),
            ("GPT4RoI", "48.0 12.1"),
            ("Osprey", "73.1 52.7"),
            ("VP-SPHINX", "74.2 49.9"),
            ("VP-LLaVA", "75.7 50.0"),
            ("DAM-8B", "84.2 73.2"),
        ),
        *published(
            _COLUMNS,
            _PIXELREFER,
            ("PAM-3B", "87.4 74.9"),
            ("PixelRefer-2B", "90.1 82.7"),
            ("PixelRefer-7B", "91.7 85.3"),
        ),
    ),
}

LVIS = _declare(
    "lvis-keywords",
    "LVIS keywords (Osprey)",
    "objects",
    "lvis_val*.json",
    "4,004 objects of 1,000 images",
)
PACO = _declare(
    "paco-keywords",
    "PACO keywords (Osprey)",
    "objects and their parts",
    "paco_val*.json",
    "4,263 objects and parts of 1,000 images",
)
