"""Visual Genome: regions described, and dense captioning mAP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.types import Caption
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
    first_words,
    mean,
    score_texts,
)
from fiftyone_regioncap.evaluation.benchmarks.predictions import Predictions
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    coco_entries,
    corners,
    find,
    read_records,
)
from fiftyone_regioncap.evaluation.captions import java, meteor
from fiftyone_regioncap.evaluation.dense import Detection, ImageMatches

_REGIONS = "vg_val*.json"
_DENSE = "*.json"
LICENSE = "Visual Genome CC BY 4.0"


def load_regions(folder: Path) -> Iterator[Item]:
    """Reads the regions, one by one; the box is the mask."""
    for number, entry in enumerate(read_records(find(folder, _REGIONS))):
        region = Region(boxes=tuple(map(corners, entry["boxes"])))
        yield Item(str(number), entry["image"][0], {0: region}, (entry["caption"],))


def load_dense(folder: Path) -> Iterator[Item]:
    """Reads the annotated boxes; those of one image stand together."""
    path = find(folder, _DENSE)
    entries = sorted(coco_entries(path), key=lambda entry: str(entry[1]["id"]))
    for number, (annotation, image) in enumerate(entries):
        x1, y1, x2, y2 = annotation["bbox"]
        box = (x1, y1, x2 + (x1 == x2), y2 + (y1 == y2))
        yield Item(
            str(annotation.get("id", number)),
            str(image.get("file_name", image["id"])),
            {0: Region(boxes=(box,))},
            (annotation["caption"],),
            values={"image": str(image["id"]), "box": box},
        )


def predict_dense(caption: Caption, item: Item) -> dict[str, Any]:
    """Returns the caption and its confidence, which orders the boxes."""
    return {"caption": caption.text, "score": caption.confidence or 0.0}


def pair_dense(
    predictions: Predictions, items: Iterable[Item], path: Path, **how: Any
) -> Iterator[Answer]:
    """Pairs images with their described boxes, or boxes with their description.

    Args:
        predictions: The file, where it has a prediction for each annotated box.
        items: The annotated boxes.
        path: The file; a JSON list of ``image_id``, ``bbox`` (x1, y1, x2, y2),
            ``score`` and ``caption`` is of boxes that a model found itself.
        **how: How the shared pairing is done.
    """
    if not _is_detections(path):
        yield from predictions.pair(items, **how)
        return
    found: dict[str, list[Any]] = {}
    for one in read_records(path):
        found.setdefault(str(one["image_id"]), []).append(one)
    for image, group in groupby(items, key=lambda item: item.values["image"]):
        own = list(group)
        truth = [(one.values["box"], one.references[0]) for one in own]
        values = {"image": image, "truth": truth}
        item = Item(image, own[0].media, values=values)
        boxes = found.pop(image, [])
        if not boxes:
            predictions.problems.add("images without a box", image)
        yield Answer(item, boxes, missing=not boxes)
    for image in found:
        predictions.problems.add("unknown", image)


def _is_detections(path: Path) -> bool:
    first = next(iter(read_records(path)), {}) if path.is_file() else {}
    return "bbox" in first and "image_id" in first


def score_dense(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Computes the mean average precision over overlaps and METEOR."""
    matches, each = ImageMatches(), {}
    names: list[str] = []
    for image, group in groupby(answers, key=lambda one: one.item.values["image"]):
        own = list(group)
        detections, truth = _of_image(own)
        before = len(matches.pairs)
        matches.add(detections, truth)
        names += [image] * (len(matches.pairs) - before)
    if not matches.pairs:
        raise BenchmarkError("there is nothing to score: no box was described")
    overall = {"detection_map": matches.result().mean}
    if java() is None:
        note = ("mAP left out: its METEOR needs Java",)
        return Scores(overall, notes=note, comparable=False)
    meteors = meteor(matches.placed(), raw=True)
    result = matches.result(meteors)
    scored = iter(meteors)
    values = [next(scored) if said else 0.0 for _, said in matches.pairs]
    by_image: dict[str, list[float]] = {}
    for image, value in zip(names, values, strict=True):
        by_image.setdefault(image, []).append(value)
    each = {image: mean(own) for image, own in by_image.items()}
    table = {
        f"iou {iou}, meteor {score}": value
        for (iou, score), value in result.by_threshold.items()
    }
    overall = {"map": result.mean, **overall, "meteor_of_boxes": mean(values)}
    return Scores({**overall, **table}, each)


def _of_image(
    answers: list[Answer],
) -> tuple[list[Detection], list[tuple[Any, str]]]:
    """Returns the described boxes of an image, and its annotated ones."""
    if "truth" in answers[0].item.values:
        found = answers[0].prediction or []
        boxes = [(one["bbox"], one["score"], one["caption"]) for one in found]
        truth = answers[0].item.values["truth"]
    else:
        boxes = [
            (one.item.values["box"], *_said(one.prediction))
            for one in answers
            if not one.missing
        ]
        truth = [(one.item.values["box"], one.item.references[0]) for one in answers]
    return [Detection(tuple(b), float(s), c) for b, s, c in boxes], truth


def _said(prediction: Any) -> tuple[float, str]:
    if isinstance(prediction, str):
        return 0.0, prediction
    return prediction["score"], prediction["caption"]


VG_REGIONS = Benchmark(
    name="vg-regions",
    title="Visual Genome region captioning",
    summary="Describes a region of a picture in a phrase.",
    unit="image region",
    size="5,000 boxes of 5,000 images (GLaMM's test)",
    license=LICENSE,
    files=(File(_REGIONS, "huggingface.co/datasets/CircleRadon/referring_evaluation"),),
    load=load_regions,
    score=score_texts,
    metric="METEOR and CIDEr of the first 100 words.",
    prompt="Please describe this region briefly.",
    postprocess=first_words,
    needs=frozenset({"java"}),
    published=(
        *published(
            "meteor cider",
            "DynRefer (arXiv 2405.16071), Table 1",
            ("GRiT", "17.1 142.0"),
            ("GPT4RoI", "17.4 145.2"),
            ("Groma", "19.0 158.4"),
            ("ControlCap", "20.4 181.9"),
            ("RegionGPT", "17.0 145.6"),
            ("GLaMM", "19.7 180.5"),
            ("Alpha-CLIP", "18.9 160.3"),
            ("DynRefer", "21.2 190.9"),
        ),
        *published(
            "meteor cider",
            "PixelRefer (arXiv 2510.23603)",
            ("PAM-3B", "20.8 142.3"),
            ("PixelRefer-2B", "19.7 161.2"),
            ("PixelRefer-7B", "19.7 168.2"),
        ),
        *published(
            "meteor", "URECA (arXiv 2504.05305), Table 3", ("URECA, zero-shot", "18.4")
        ),
    ),
    traps=(
        "Not comparable with all of Visual Genome, which gives about 1 METEOR less.",
        "CIDEr depends on the set, whose references weigh the words.",
    ),
)

_MAP = "DynRefer (arXiv 2405.16071), Table 3; VG v1.0"
DENSE_ROWS = (
    *published(
        "map",
        f"{_MAP}, boxes given",
        ("FCLN", "27.0"),
        ("GRiT", "40.0"),
        ("BLIP2", "37.7"),
        ("ControlCap", "42.4"),
        ("DynRefer", "47.2"),
    ),
    *published(
        "map",
        f"{_MAP}, own boxes",
        ("FCLN, own boxes", "5.4"),
        ("TDC, own boxes", "11.5"),
        ("GRiT, own boxes", "15.5"),
        ("ControlCap, own boxes", "18.2"),
        ("DynRefer, GRiT's boxes", "19.1"),
    ),
    *published(
        "map",
        "DynRefer (arXiv 2405.16071), Table 3; VG v1.2",
        ("GRiT, v1.2", "40.3"),
        ("BLIP2, v1.2", "37.9"),
        ("ControlCap, v1.2", "42.8"),
        ("DynRefer, v1.2", "47.4"),
        ("CapDet, v1.2, own boxes", "15.4"),
        ("DetCLIPv3, v1.2, own boxes", "19.7"),
    ),
)

VG_DENSE = Benchmark(
    name="vg-dense",
    title="Visual Genome dense captioning",
    summary="Finds and describes all parts of a picture, or describes given boxes.",
    unit="image region",
    size="5,000 images (VG v1.0 and v1.2), 2,476 (VG-COCO)",
    license=LICENSE,
    files=(File(_DENSE, "github.com/callsys/ControlCap, docs/data.md: test.json"),),
    load=load_dense,
    score=score_dense,
    metric="Mean average precision over overlaps and METEOR (DenseCap).",
    predict=predict_dense,
    pair=pair_dense,
    needs=frozenset({"java"}),
    published=DENSE_ROWS,
    traps=(
        "METEOR reads texts untokenized; recalls are 0 to 0.99; images without a "
        "described box leave the denominator.",
    ),
)
