"""Patch-ioner's four tasks: traces, dense captions, sets of regions, whole images.

As its paper has them (arXiv 2510.02898), from the published annotation files.
Patch-ioner itself answers from the patches under traces and boxes, at one backbone pass
per image; other captioners get masks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fiftyone_regioncap.captioning.patchioner import aggregation
from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.language import Description
from fiftyone_regioncap.captioning.patchioner.model import embed_regions
from fiftyone_regioncap.core.errors import PromptError, RegionCapError
from fiftyone_regioncap.core.types import Caption, Frame
from fiftyone_regioncap.evaluation.benchmarks.base import (
    Answer,
    Benchmark,
    File,
    Item,
    Published,
    Region,
    Scores,
    Tools,
    published,
)
from fiftyone_regioncap.evaluation.benchmarks.clip import add_clip_scores
from fiftyone_regioncap.evaluation.benchmarks.media import open_image
from fiftyone_regioncap.evaluation.benchmarks.metrics import score_texts
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    find,
    read_object,
    read_records,
)
from fiftyone_regioncap.evaluation.benchmarks.visual_genome import (
    LICENSE,
    load_dense,
    pair_dense,
    predict_dense,
    score_dense,
)

_FILE = "*.json"
_NARRATIVES = "*narratives*.jsonl"
_TRIMMED = 0.15
"""Share of a narrative's points that is left out at either end."""


def load_traces(folder: Path) -> Iterator[Item]:
    """Reads traces of the mouse with what was said meanwhile, image by image.

    They are in the published set, or made of Localized Narratives as its authors did:
    the first and the last 15 % of a trace's points are left out. They also had a
    language model rewrite the captions, which is not done here.
    """
    narratives = sorted(folder.glob(_NARRATIVES))
    if narratives:
        for path in narratives:
            yield from _narratives(path)
        return
    with _layout(folder, _FILE) as read:
        for image, entry in sorted(read.items()):
            pairs = zip(entry["captions"], entry["traces"], strict=True)
            for number, (caption, trace) in enumerate(pairs):
                points = tuple((point["x"], point["y"]) for point in trace)
                region = Region(points=points)
                yield Item(f"{image}_{number}", image, {0: region}, (caption,))


def _narratives(path: Path) -> Iterator[Item]:
    try:
        for number, entry in enumerate(read_records(path)):
            points = [(p["x"], p["y"]) for part in entry["traces"] for p in part]
            cut = int(_TRIMMED * len(points))
            region = Region(points=tuple(points[cut : len(points) - cut]))
            image = str(entry["image_id"])
            yield Item(f"{image}_{number}", image, {0: region}, (entry["caption"],))
    except (KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} is no file of Localized Narratives: {error!r} is missing"
        ) from error


def load_region_sets(folder: Path) -> Iterator[Item]:
    """Reads sets of boxes with their caption; one without boxes is the whole image."""
    with _layout(folder, _FILE) as read:
        for image, entry in sorted(read.items()):
            for number, (caption, boxes) in enumerate(entry.items()):
                edges = tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes)
                region = Region(boxes=edges)
                yield Item(f"{image}_{number}", image, {0: region}, (caption,))


def load_images(folder: Path) -> Iterator[Item]:
    """Reads images with all their captions; the captions may be in a file beside."""
    captions = defaultdict(list)
    paths = sorted(folder.glob("captions*.json")) or [find(folder, _FILE)]
    with _layout(folder, paths[0].name) as spoken:
        for entry in spoken["annotations"]:
            captions[entry["image_id"]].append(entry["caption"])
    others = [p for p in sorted(folder.glob(_FILE)) if p not in paths]
    with _layout(folder, (others or paths)[0].name) as read:
        for entry in read["images"]:
            key = str(entry["id"])
            yield Item(key, key, {0: Region()}, tuple(captions[entry["id"]]))


@contextmanager
def _layout(folder: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """Reads a file; what its layout lacks becomes an error that names it."""
    path = find(folder, pattern)
    try:
        yield read_object(path)
    except RegionCapError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BenchmarkError(
            f"{path} is not an annotation file of this task: {error!r}"
        ) from error


def region_of(item: Item, height: int, width: int) -> aggregation.Region:
    """Returns the patches that an item is about, on an image of a size in pixels."""
    region = item.regions[0]
    if region.points is not None:
        rows = np.array(region.points, dtype=np.float64).reshape(-1, 2)
        return aggregation.Points(rows * [width, height])
    return aggregation.BoxSet(region.boxes) if region.boxes else aggregation.Whole()


def describe(
    captioner: PatchionerCaptioner,
    items: Iterable[Item],
    media: Path,
    baseline: str | None = None,
) -> Iterator[Caption]:
    """Describes items from their patches, with one backbone pass per image.

    Args:
        captioner: The captioner; its weighting and ``compat`` count.
        items: Items; those of one image stand together.
        media: Folder of the images.
        baseline: The paper's baselines: ``"crop"`` describes the boxes cut out,
            ``"cls"`` the image token of the boxes cut out, ``"image"`` the whole
            picture; None for the patches.

    Yields:
        Captions in the order of the items; their confidence is the reference's score
        where there is one, which orders the boxes of the dense task.
    """
    for image, group in groupby(items, key=lambda item: item.media):
        asked = list(group)
        rows, errors = [], {}
        try:
            embedded = _embedder(captioner, open_image(media, image), baseline)
            for place, item in enumerate(asked):
                try:
                    rows.append(embedded(item))
                except PromptError as error:
                    errors[place] = str(error)
        except RegionCapError as error:
            rows, errors = [], dict.fromkeys(range(len(asked)), str(error))
        found = captioner.model.language.describe(torch.cat(rows)) if rows else ()
        described = iter(found)
        for place in range(len(asked)):
            if place in errors:
                yield Caption(error=errors[place])
            else:
                yield _caption(next(described))


def _embedder(
    captioner: PatchionerCaptioner, picture: Frame, baseline: str | None
) -> Callable[[Item], torch.Tensor]:
    """Returns what embeds the items of a picture, float32 (1, D) each."""
    model = captioner.model
    embed = partial(embed_regions, weighting=captioner.weighting, compat=model.compat)

    def cut_out(item: Item) -> torch.Tensor:
        boxes = item.regions[0].boxes
        crops = [_crop(picture, box) for box in boxes] or [picture]
        rows = []
        for features in model.backbone.encode(crops):
            if baseline == "crop":
                rows.append(embed(features, [aggregation.Whole()]))
            elif features.cls is None:
                raise PromptError("this backbone has no image token; take crop")
            else:
                rows.append(features.cls[None].float())
        return torch.cat(rows).mean(dim=0, keepdim=True)

    if baseline not in (None, "image"):
        return cut_out
    (whole,) = model.backbone.encode([picture])
    if baseline == "image":
        return lambda item: embed(whole, [aggregation.Whole()])
    return lambda item: embed(whole, [region_of(item, *picture.shape[:2])])


def _crop(picture: Frame, box: tuple[float, ...]) -> Frame:
    height, width = picture.shape[:2]
    x1, y1 = (max(0, math.floor(edge)) for edge in box[:2])
    x2, y2 = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    if x1 >= x2 or y1 >= y2:
        raise PromptError(f"the box {box} lies outside the {width}x{height} image")
    return picture[y1:y2, x1:x2]


def _caption(description: Description) -> Caption:
    score = description.confidence if description.score is None else description.score
    return Caption(text=(description.text or "").strip(" ."), confidence=score)


def score(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Computes caption metrics; with CLIP's or PAC-S' weights, their scores too."""
    said = list(answers)
    return add_clip_scores(score_texts(said, tools), said, tools)


def score_with_map(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Computes the dense task's mAP, and the caption metrics of described boxes."""
    said = list(answers)
    dense = score_dense(said, tools)
    own = [
        replace(one, prediction=one.prediction["caption"] if one.prediction else "")
        for one in said
        if not isinstance(one.prediction, list)
    ]
    if not own:
        return dense
    texts = score(own, tools)
    return replace(
        dense,
        overall={**dense.overall, **texts.overall},
        notes=(*dense.notes, *texts.notes),
    )


def tidy(text: str) -> str:
    """Removes spaces and periods around a text, as the published scores do."""
    return text.strip(" .")


_PAPER = "Patch-ioner (arXiv 2510.02898), Table 2"
_MODELS = ("T2D+Mem", "T2D+Noise", "T2D+ViECap", "T2D+MeaCap", "DeCap (CLIP)")


def _rows(*tables: tuple[str, str, tuple[str, ...]]) -> tuple[Published, ...]:
    """Makes the rows of several data sets, each a value of each model."""
    return tuple(
        row
        for data, columns, values in tables
        for row in published(
            columns,
            f"{_PAPER}, {data}",
            *(
                (f"{name}, {data}", own)
                for name, own in zip(_MODELS, values, strict=True)
            ),
        )
    )


def _declare(
    task: str, title: str, rows: tuple[Published, ...], **own: Any
) -> Benchmark:
    return Benchmark(
        **{
            "name": f"patchioner-{task}",
            "title": f"Patch-ioner: {title}",
            "unit": "image region",
            "score": score,
            "metric": "BLEU, METEOR, ROUGE-L, CIDEr; CLIP-S, PAC-S and RefPAC-S "
            "(`refpac_text`) with their weights.",
            "postprocess": tidy,
            "describe": {"patchioner": describe},
            "generation": {"compat": "reference"},
            "needs": frozenset({"java"}),
            "published": rows,
            **own,
        }
    )


_CODE = "github.com/Ruggero1912/Patch-ioner"
_TRAPS = (
    "Its RefPAC-S is the similarity of texts alone, without a picture: `refpac_text`.",
    "Its feature files are used again when only their number agrees.",
)

TRACE = _declare(
    "trace",
    "traces",
    _rows(
        (
            "COCO",
            "cider refpac_text",
            ("27.9 78.7", "29.3 78.1", "28.2 78.2", "27.4 78.8", "20.5 75.3"),
        ),
        (
            "Flickr30k",
            "cider refpac_text",
            ("18.8 77.0", "19.3 75.6", "18.5 76.2", "20.3 77.3", "11.2 71.0"),
        ),
    ),
    summary="Describes what a trace of the mouse runs over.",
    size="Localized Narratives of the Karpathy test images",
    license="Localized Narratives CC BY 4.0; pictures of COCO and Flickr30k",
    files=(
        File(_FILE, f"{_CODE}: trace_capt_*_test.json", optional=True),
        File(_NARRATIVES, "google.github.io/localized-narratives", optional=True),
    ),
    load=load_traces,
    traps=(
        *_TRAPS,
        "A set made of Localized Narratives has captions that no language model "
        "rewrote: not the published set.",
    ),
)
DENSE = _declare(
    "dense",
    "dense captioning",
    _rows(
        (
            "VG v1.2",
            "map cider refpac_text",
            (
                "21.31 31.9 78.8",
                "20.26 26.3 77.0",
                "18.43 30.3 77.8",
                "18.66 31.9 78.9",
                "17.75 24.6 77.8",
            ),
        ),
        (
            "VG-COCO",
            "map cider refpac_text",
            (
                "21.53 32.3 78.7",
                "20.33 26.4 76.9",
                "18.43 30.7 77.7",
                "19.43 32.3 78.7",
                "17.8 24.9 77.7",
            ),
        ),
    ),
    summary="Describes given boxes, the surest of which count most.",
    size="5,000 images (VG v1.2), 2,476 (VG-COCO)",
    license=LICENSE,
    files=(File(_FILE, "github.com/callsys/ControlCap, docs/data.md: test.json"),),
    load=load_dense,
    score=score_with_map,
    metric="Mean average precision (DenseCap), and the caption metrics.",
    postprocess=None,
    predict=predict_dense,
    pair=pair_dense,
    traps=_TRAPS,
)
REGION_SET = _declare(
    "region-set",
    "region sets",
    _rows(
        (
            "COCO Entities",
            "cider refpac_text",
            ("109.1 87.5", "97.5 85.6", "109.3 86.7", "104.4 86.9", "95.1 87.4"),
        ),
        (
            "Flickr30k Entities",
            "cider refpac_text",
            ("44.1 79.1", "37.1 76.5", "37.8 77.8", "42.3 78.6", "39.4 78.8"),
        ),
    ),
    summary="Describes several boxes of a picture in one caption.",
    size="6,617 items (COCO Entities), 3,968 (Flickr30k Entities)",
    license="not stated; pictures of COCO and Flickr30k",
    files=(File(_FILE, f"{_CODE}: of COCO Entities or Flickr30k Entities"),),
    load=load_region_sets,
    traps=(*_TRAPS, "22 items of the Flickr30k file have no box: the whole image."),
)
IMAGE = _declare(
    "image",
    "whole images",
    _rows(
        (
            "COCO",
            "cider refpac_text clip_s",
            (
                "88.5 90.2 76.0",
                "65.5 86.2 70.9",
                "88.5 89.2 73.7",
                "83.0 89.6 74.8",
                "87.4 90.6 79.3",
            ),
        ),
        (
            "Flickr30k",
            "cider refpac_text clip_s",
            (
                "39.3 84.2 71.8",
                "27.8 80.8 67.0",
                "34.1 82.8 69.9",
                "39.4 84.4 71.4",
                "40.0 84.8 76.3",
            ),
        ),
    ),
    summary="Describes whole pictures.",
    unit="image",
    size="5,000 images (COCO), 1,000 (Flickr30k); Karpathy test",
    license="COCO's captions CC BY 4.0; pictures of COCO and Flickr30k",
    files=(
        File(_FILE, f"{_CODE}: *-test.json, the images"),
        File("captions*.json", "cocodataset.org: captions_val2014.json", optional=True),
    ),
    load=load_images,
    generation={"compat": "reference", "weighting": "attention"},
    traps=_TRAPS,
)
