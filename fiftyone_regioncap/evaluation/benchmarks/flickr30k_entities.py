"""Flickr30k Entities: phrases of captions, each for the boxes that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from fiftyone_regioncap.core.types import Box
from fiftyone_regioncap.evaluation.benchmarks.base import (
    Benchmark,
    File,
    Item,
    Region,
    published,
)
from fiftyone_regioncap.evaluation.benchmarks.metrics import score_texts
from fiftyone_regioncap.evaluation.benchmarks.reading import BenchmarkError

_PHRASE = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]*)\]")


@dataclass
class _Entity:
    """Phrases and boxes of one entity of a picture."""

    phrases: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


def load(folder: Path) -> Iterator[Item]:
    """Reads the entities that have boxes, picture by picture."""
    split = folder / "test.txt"
    if split.exists():
        images = split.read_text(encoding="utf-8").split()
    else:
        images = sorted(path.stem for path in (folder / "Sentences").glob("*.txt"))
    if not images:
        raise BenchmarkError(
            f"{folder} has no Sentences/*.txt; `regioncap benchmark list "
            "flickr30k-entities` says where they are published"
        )
    for image in images:
        for key, entity in _entities(folder, image).items():
            if entity.boxes and entity.phrases:
                region = Region(boxes=tuple(entity.boxes))
                phrases = tuple(dict.fromkeys(entity.phrases))
                yield Item(f"{image}_{key}", f"{image}.jpg", {0: region}, phrases)


def _entities(folder: Path, image: str) -> dict[str, _Entity]:
    found: dict[str, _Entity] = {}
    sentences = folder / "Sentences" / f"{image}.txt"
    boxes = folder / "Annotations" / f"{image}.xml"
    try:
        for key, phrase in _PHRASE.findall(sentences.read_text(encoding="utf-8")):
            found.setdefault(key, _Entity()).phrases.append(phrase)
        for one in ElementTree.parse(boxes).iter("object"):
            edges = one.find("bndbox")
            if edges is None:
                continue
            x1, y1, x2, y2 = (
                float(edges.findtext(name) or "nan")
                for name in ("xmin", "ymin", "xmax", "ymax")
            )
            for name in one.findall("name"):
                own = found.setdefault(str(name.text), _Entity())
                own.boxes.append((x1, y1, x2, y2))
    except (OSError, ElementTree.ParseError) as error:
        raise BenchmarkError(f"picture {image} can't be read: {error}") from error
    return found


FLICKR30K_ENTITIES = Benchmark(
    name="flickr30k-entities",
    title="Flickr30k Entities phrases",
    summary="Describes the boxes that a phrase of a caption names.",
    unit="image region",
    size="the entities of 1,000 pictures (test)",
    license="annotations CC BY-NC 4.0; pictures on request, for research only",
    files=(
        File("Sentences/*.txt", "github.com/BryanPlummer/flickr30k_entities"),
        File("Annotations/*.xml", "github.com/BryanPlummer/flickr30k_entities"),
        File("test.txt", "github.com/BryanPlummer/flickr30k_entities", optional=True),
    ),
    load=load,
    score=score_texts,
    metric="BLEU, METEOR, ROUGE-L, CIDEr and SPICE; all phrases are references.",
    needs=frozenset({"java"}),
    published=published(
        "bleu_4 meteor rouge_l cider spice",
        "DAM (arXiv 2504.16072), Table 3; split, prompt and references not stated",
        ("Shikra", "18.2 15.3 25.2 49.8 22.0"),
        ("GPT4RoI", "19.7 17.7 29.9 61.7 24.0"),
        ("Ferret-7B", "11.1 8.8 22.7 38.1 17.5"),
        ("VP-SPHINX", "15.2 15.6 27.2 67.4 24.0"),
        ("RegionGPT", "16.1 16.7 27.4 54.6 20.5"),
        ("DAM-8B", "22.6 17.8 31.2 74.7 25.5"),
    ),
    traps=(
        "The published protocol is not stated; here an item is an entity of a picture, "
        "all its boxes are one region, and its phrases are the references.",
    ),
)
