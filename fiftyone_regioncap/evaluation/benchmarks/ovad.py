"""OVAD: attributes of objects whose boxes are given (arXiv 2211.12914)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from fiftyone_regioncap.evaluation.benchmarks.metrics import (
    average_precisions,
    grouped_means,
)
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    coco_entries,
    corners,
    find,
    read_object,
)

if TYPE_CHECKING:
    from fiftyone_regioncap.core.types import Caption

_FILE = "*ovad*.json"


def load(folder: Path) -> Iterator[Item]:
    """Reads the boxes with what is known of their attributes."""
    path = find(folder, _FILE)
    attributes = read_object(path).get("attributes")
    if not attributes:
        raise BenchmarkError(f"{path} lists no attributes")
    for annotation, image in coco_entries(path):
        region = Region(boxes=(corners(annotation["bbox"]),))
        values = {"labels": annotation["att_vec"], "attributes": attributes}
        yield Item(
            str(annotation["id"]), image["file_name"], {0: region}, values=values
        )


def names_of(attribute: dict[str, Any]) -> list[str]:
    """Returns the ways to say an attribute, such as "smooth" and "glossy".

    Its name is ``"type:synonym/synonym"``.
    """
    return str(attribute["name"]).partition(":")[2].split("/")


def predict(caption: Caption, item: Item) -> Any:
    """Returns a score for each attribute where there are scores; else the text."""
    if not caption.attributes:
        return caption.text
    known = {name.split(":", 1)[-1]: score for name, score in caption.attributes}
    full = dict(caption.attributes)
    return [
        max(
            (known.get(n, 0.0) for n in names_of(attribute)),
            default=0.0,
        )
        if attribute["name"] not in full
        else full[attribute["name"]]
        for attribute in item.values["attributes"]
    ]


def _templates(attribute: dict[str, Any]) -> list[str]:
    verb = "has" if attribute.get("is_has_att") == "has" else "is"
    kind = str(attribute.get("type", "")) if verb == "has" else ""
    return [
        " ".join(f"the object {verb} {name} {kind}".split())
        for name in names_of(attribute)
    ]


def _by_similarity(texts: list[str], attributes: Any, tools: Tools) -> np.ndarray:
    """Scores attributes by how close the caption is to a sentence that states them."""
    embedder = tools.need_embedder()
    said = embedder.embed(texts)
    columns = []
    for attribute in attributes:
        stated = embedder.embed(_templates(attribute))
        columns.append((said @ stated.T).max(axis=1))
    return np.stack(columns, axis=1).astype(float)


def score(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Computes the mean average precision over attributes, in all and by group."""
    ids: list[str] = []
    labels, texts = [], []
    rows: list[Any] = []
    attributes: Any = []
    for one in answers:
        attributes = one.item.values["attributes"]
        ids.append(one.item.id)
        labels.append(one.item.values["labels"])
        given = one.prediction
        if isinstance(given, str):
            texts.append((len(rows), given))
            given = [0.0] * len(attributes)
        if len(given) != len(attributes):
            raise BenchmarkError(
                f"box {one.item.id} has {len(given)} scores for {len(attributes)} "
                "attributes"
            )
        rows.append(given)
    if not rows:
        raise BenchmarkError("there are no boxes to score")
    scores, truth = np.array(rows, float), np.array(labels, np.int64)
    said = [(place, text) for place, text in texts if text]
    notes: tuple[str, ...] = ()
    if said:
        places = [place for place, _ in said]
        scores[places] = _by_similarity([t for _, t in said], attributes, tools)
        notes = (
            "attributes are scored by the similarity of captions to sentences: not the "
            "published protocol, whose models score attributes",
        )
    found = average_precisions(np.clip(scores, 0, 1), truth)
    names = [attribute["name"] for attribute in attributes]
    values = dict(zip(names, found.tolist(), strict=True))
    overall = grouped_means(values, _groups(attributes))
    counts = {"attributes_without_a_positive": int(np.isnan(found).sum())}
    each = {
        key: float(np.mean(np.where(own == 1, row, 1 - row)[own >= 0]))
        for key, own, row in zip(ids, truth, np.clip(scores, 0, 1), strict=True)
        if (own >= 0).any()
    }
    attribute_scores = {
        f"attribute {name}": value for name, value in values.items() if value == value
    }
    return Scores(
        {**overall, **attribute_scores}, each, counts, notes, comparable=not said
    )


def _groups(attributes: Any) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {"all": []}
    for name in ("head", "medium", "tail"):
        groups[name] = []
    for attribute in attributes:
        name = attribute["name"]
        many = "multiple" if len(names_of(attribute)) > 1 else "single"
        for group in ("all", attribute["freq_set"], attribute.get("parent_type"), many):
            if group:
                groups.setdefault(group, []).append(name)
    return groups


OVAD = Benchmark(
    name="ovad",
    title="OVAD, boxes given",
    summary="Tells which of 117 attributes an object has.",
    unit="image region",
    size="14,300 boxes of 2,000 images",
    license="annotations CC BY-NC-SA 4.0; COCO's pictures (val2017), Flickr terms",
    files=(File(_FILE, "github.com/OVAD-Benchmark/ovad-benchmark-code"),),
    load=load,
    score=score,
    metric="Mean over attributes of average precision: all, head, medium and tail.",
    predict=predict,
    published=published(
        "all head medium tail",
        "DynRefer (arXiv 2405.16071), Table 2",
        ("chance", "8.6 36.0 7.3 0.6"),
        ("CLIP RN50", "15.8 42.5 17.5 4.2"),
        ("CLIP B16", "16.6 43.9 18.6 4.4"),
        ("OpenCLIP RN50", "11.8 41.0 11.7 1.4"),
        ("OpenCLIP B16", "16.0 45.4 17.4 3.8"),
        ("OpenCLIP B32", "17.0 44.3 18.4 5.5"),
        ("ALBEF", "21.0 44.2 23.9 9.4"),
        ("OVAD baseline B32", "21.4 48.0 26.9 5.2"),
        ("BLIP2 EVA", "25.5 49.8 30.5 10.8"),
        ("X-VLM Swin-B", "28.1 49.7 34.2 12.9"),
        ("DynRefer ViT-L", "28.2 50.9 34.5 12.5"),
        ("DynRefer EVA", "29.2 49.9 35.7 14.0"),
    ),
    traps=(
        "Boxes without a prediction count with scores of 0.",
        "Scores outside [0, 1] are clipped, which makes ties.",
        "The evaluator's own code is CC BY-NC 4.0; this one is written anew.",
    ),
)
