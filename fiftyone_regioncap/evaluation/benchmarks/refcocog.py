"""RefCOCOg: regions of COCO's pictures described by referring expressions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

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
from fiftyone_regioncap.evaluation.benchmarks.metrics import score_texts
from fiftyone_regioncap.evaluation.benchmarks.reading import coco_entries, find

_FILE = "*refcocog_val*.json"


def load(folder: Path) -> Iterator[Item]:
    """Reads the expressions; each is an item, also where several are of one region."""
    for annotation, image in coco_entries(find(folder, _FILE)):
        place = annotation.get("region", (image["file_name"], *annotation["bbox"]))
        caption = annotation.get("caption") or image["caption"]
        yield Item(
            str(annotation["id"]),
            image["file_name"].split("_")[-1],
            {0: Region(annotation["segmentation"])},
            (caption,),
            values={"region": str(place)},
        )


def after_colon(text: str) -> str:
    """Returns what follows the first colon, as Osprey's code does."""
    return text.split(":", 1)[-1]


def score(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Scores captions against single expressions, and against all of their region."""
    said = list(answers)
    single = score_texts(said, tools)
    regions: dict[str, Answer] = {}
    for one in said:
        key = one.item.values["region"]
        known = regions.get(key, one)
        more = () if known is one else one.item.references
        item = replace(known.item, references=(*known.item.references, *more))
        regions[key] = replace(known, item=item)
    together = score_texts(regions.values(), tools)
    suffixed = {f"{name}_together": v for name, v in together.overall.items()}
    return replace(single, overall={**single.overall, **suffixed})


_COLUMNS = "meteor cider"

REFCOCOG = Benchmark(
    name="refcocog",
    title="RefCOCOg region captioning",
    summary="Describes a region of a picture so that it can be told from others.",
    unit="image region",
    size="4,896 expressions of 2,573 objects (UMD val)",
    license="annotations CC BY 4.0; COCO's pictures (train2014), Flickr terms",
    files=(File(_FILE, "huggingface.co/datasets/sunshine-lwt/Osprey-ValData"),),
    load=load,
    score=score,
    metric="METEOR and CIDEr, each expression an item (`_together`: all expressions of "
    "a region are its references, as lmms-eval does).",
    prompt="Please give me a short description of this region.",
    postprocess=after_colon,
    needs=frozenset({"java"}),
    published=(
        *published(
            _COLUMNS,
            "DynRefer (arXiv 2405.16071), Table 1",
            ("SLR", "15.9 66.2"),
            ("GRiT", "15.2 71.6"),
            ("Kosmos-2", "14.1 62.3"),
            ("Groma", "16.8 107.3"),
            ("ControlCap", "17.0 111.4"),
            ("RegionGPT", "16.9 109.9"),
            ("GLaMM", "16.2 106.0"),
            ("Alpha-CLIP", "16.7 109.2"),
            ("Osprey", "16.6 108.3"),
            ("DynRefer, fine-tuned", "18.1 115.7"),
        ),
        *published(
            _COLUMNS,
            "URECA (arXiv 2504.05305), Table 3",
            ("URECA, zero-shot", "16.1 -"),
            ("Omni-RGPT", "17.0 -"),
            ("ViP-LLaVA", "16.6 -"),
        ),
    ),
    traps=(
        "Rows are by one expression an item; all expressions of a region together give "
        "much higher numbers.",
        "The UMD split is meant; Google's differs.",
    ),
)
