"""COCO region recognition: the class of objects whose boxes are given."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    coco_entries,
    corners,
    find,
    read_object,
)

_FILE = "instances_*.json"


def load(folder: Path) -> Iterator[Item]:
    """Reads the boxes with their class; crowds are left to COCO's evaluation."""
    path = find(folder, _FILE)
    categories = read_object(path)["categories"]
    names = {one["id"]: one["name"] for one in categories}
    for annotation, image in coco_entries(path):
        box = annotation["bbox"]
        name = names.get(annotation["category_id"])
        if name is None:
            raise BenchmarkError(f"annotation {annotation['id']} is of no category")
        yield Item(
            str(annotation["id"]),
            image["file_name"],
            {0: Region(boxes=(corners(box),))},
            (name,),
            values={
                "image": image["id"],
                "box": box,
                "category": annotation["category_id"],
                "categories": categories,
            },
        )


def predict(caption: Any, item: Item) -> Any:
    """Returns the captioner's category where it names one; else its text."""
    return caption.category[0] if caption.category else caption.text


def score(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Computes COCO's mAP of the named boxes, and the accuracy of the names."""
    names: dict[str, int] = {}
    detections, each, texts = [], {}, []
    for one in answers:
        values = one.item.values
        names = names or {c["name"]: c["id"] for c in values["categories"]}
        if one.missing:
            each[one.item.id] = 0.0
            continue
        if isinstance(one.prediction, str):
            texts.append(one)
            continue
        logits = np.asarray(one.prediction, float)
        if logits.shape != (len(names),):
            raise BenchmarkError(
                f"box {one.item.id} has {logits.size} scores for {len(names)} classes"
            )
        best = int(logits.argmax())
        detections.append(_detection(one, [*names.values()][best], float(logits[best])))
        each[one.item.id] = float(detections[-1]["category_id"] == values["category"])
    for one, category, value in _named(texts, names, tools):
        detections.append(_detection(one, category, value))
        each[one.item.id] = float(category == one.item.values["category"])
    overall = _coco_map(find(tools.folder, _FILE), detections)
    overall["accuracy"] = sum(each.values()) / max(1, len(each))
    notes = (
        "texts were mapped to the nearest class by sentence similarity, which is not "
        "the published protocol",
    )
    return Scores(overall, each, notes=notes if texts else (), comparable=not texts)


def _detection(answer: Answer, category: int, score: float) -> dict[str, Any]:
    values = answer.item.values
    return {
        "image_id": values["image"],
        "bbox": values["box"],
        "category_id": category,
        "score": score,
    }


def _named(
    answers: list[Answer], names: dict[str, int], tools: Tools
) -> Iterator[tuple[Answer, int, float]]:
    """Maps texts to classes: equal names, else the nearest by sentence similarity."""
    if not answers:
        return
    embedder = tools.need_embedder()
    classes = embedder.embed(list(names))
    similarity = embedder.embed([one.text for one in answers]) @ classes.T
    for one, row in zip(answers, similarity, strict=True):
        best = int(row.argmax())
        yield one, [*names.values()][best], float(row[best])


def _coco_map(annotations: Path, detections: list[dict[str, Any]]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not detections:
        return {"map": 0.0, "ap50": 0.0, "ap75": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("map", "ap50", "ap75")
    return {n: float(v) for n, v in zip(names, evaluation.stats, strict=False)}


COCO_RECOGNITION = Benchmark(
    name="coco-recognition",
    title="COCO-2017 val region recognition",
    summary="Names the class of an object whose box is given.",
    unit="image region",
    size="36,781 boxes of 5,000 images",
    license="annotations CC BY 4.0; COCO's pictures (val2017), Flickr terms",
    files=(File(_FILE, "cocodataset.org, annotations of val2017"),),
    load=load,
    score=score,
    metric="COCO's mAP with the class's score as confidence, and accuracy.",
    prompt="What is the category of this region? Using only one word or phrase.",
    predict=predict,
    published=published(
        "map accuracy",
        "DynRefer (arXiv 2405.16071), Table 4",
        ("CLIP L", "58.9 -"),
        ("RegionCLIP R50", "58.3 -"),
        ("LLaVA", "- 40.0"),
        ("Shikra", "- 53.9"),
        ("GPT4RoI", "- 64.0"),
        ("PVIT", "- 64.5"),
        ("ASM", "69.3 -"),
        ("RegionGPT", "70.0 80.6"),
        ("DynRefer L", "85.0 89.4"),
        ("DynRefer EVA", "89.2 91.8"),
    ),
    traps=(
        "mAP orders boxes of all pictures by their raw scores, so that calibration "
        "changes it; boxes without a prediction are no detections, and wrong in the "
        "accuracy.",
    ),
)
