"""URECA's test set: captions that fit one region of a picture, and no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

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
    bert_score,
    google_rouge,
    mean,
    score_texts,
)
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    find,
    read_object,
    read_records,
)

_FILE = "*test*.jsonl"


def load(folder: Path) -> Iterator[Item]:
    """Reads the regions; their masks are in SA-1B's files, where those are there."""

    @lru_cache(maxsize=1)
    def masks(image: str) -> dict[str, Any]:
        path = folder / f"{image}.json"
        annotations = read_object(path)["annotations"] if path.exists() else []
        return {str(one["id"]): one["segmentation"] for one in annotations}

    for entry in read_records(find(folder, _FILE)):
        asked, said = (turn["value"] for turn in entry["conversations"][:2])
        mask = masks(entry["image"]).get(str(entry["mask_id"]))
        yield Item(
            str(entry["id"]),
            entry["image"],
            {} if mask is None else {0: Region(mask)},
            (said,),
            asked.replace("<image>", "").replace("<mask>", "").strip(),
        )


def score(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Scores captions by pycocoevalcap, Google's ROUGE, and BERTScore if named."""
    said = list(answers)
    scores = score_texts(said, tools)
    pairs = [(one.text, one.item.references[0]) for one in said]
    overall = {**scores.overall, "google_rouge_l": mean(google_rouge(pairs))}
    notes = [
        *scores.notes,
        "not comparable: which implementations URECA took is unknown",
    ]
    model = tools.models.get("bert")
    if model is None:
        notes.append("BERTScore left out: name its model (models bert=FOLDER)")
    else:
        overall["bert_score"] = mean(bert_score(pairs, model))
        notes.append(f"BERTScore is F1 by {model}, its usual layer, not rescaled")
    return replace(scores, overall=overall, notes=tuple(notes), comparable=False)


URECA = Benchmark(
    name="ureca",
    title="URECA test set",
    summary="Describes a region of any size so that the text fits no other one.",
    unit="image region",
    size="not released; sets of the same form take its place",
    license="not released; SA-1B's pictures under its research license",
    files=(
        File(_FILE, "not released; JSON lines as URECA's code writes them"),
        File(
            "sa_*.json", "SA-1B's masks (ai.meta.com/datasets/segment-anything)", True
        ),
    ),
    load=load,
    score=score,
    metric="BLEU, ROUGE-L, METEOR of pycocoevalcap, ROUGE-L of rouge-score, BERTScore.",
    prompt="Describe this region in the image.",
    needs=frozenset({"java"}),
    published=published(
        "bleu_1 bleu_2 bleu_3 bleu_4 rouge_l meteor bert_score",
        "URECA (arXiv 2504.05305), main table; all trained on its data",
        ("ViP-LLaVA", "34.17 22.07 13.96 9.00 38.17 37.68 74.62"),
        ("OMG-LLaVA", "34.01 21.88 13.51 8.46 38.14 37.29 74.68"),
        ("KOSMOS-2", "30.31 18.12 9.96 5.55 34.19 32.94 72.64"),
        ("SCA", "22.76 13.58 6.97 3.88 30.76 24.87 70.67"),
        ("no conditioning", "17.06 7.63 3.14 1.20 17.86 27.72 62.68"),
        ("contour", "17.10 7.13 2.63 1.01 19.95 25.49 63.29"),
        ("crop", "18.43 7.53 2.45 0.85 19.73 26.45 63.63"),
        ("URECA-8B", "36.56 23.84 15.42 9.98 38.95 41.25 75.11"),
        ("URECA-1B", "- - - - 32.00 33.99 71.77"),
        ("URECA-2B", "- - - - 36.64 39.00 73.92"),
        ("URECA-4B", "- - - - 36.58 38.75 73.97"),
    ),
    traps=("Which implementation of each metric the paper used is not stated.",),
)
