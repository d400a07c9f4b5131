"""HC-STVG captioning: people of movie scenes, described briefly (VideoRefer's set)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fiftyone_regioncap.evaluation.benchmarks.base import (
    Benchmark,
    File,
    Item,
    Region,
    published,
)
from fiftyone_regioncap.evaluation.benchmarks.metrics import first_words, score_texts
from fiftyone_regioncap.evaluation.benchmarks.reading import find, read_records

_FILE = "hc_stvg_val*.json"
_COLUMNS = "bleu_4 meteor rouge_l cider spice"


def load(folder: Path) -> Iterator[Item]:
    """Reads the objects of the file, one by one; each is marked on one frame."""
    for number, entry in enumerate(read_records(find(folder, _FILE))):
        regions = {int(entry["frame_idx"]): Region(entry["mask"])}
        yield Item(str(number), entry["video"], regions, (entry["caption"],))


HC_STVG = Benchmark(
    name="hc-stvg",
    title="HC-STVG captioning",
    summary="Describes what a marked person does in a clip of a movie.",
    unit="track",
    size="not stated",
    license="not stated; the videos are those of HC-STVG",
    files=(File(_FILE, "huggingface.co/datasets/CircleRadon/referring_evaluation"),),
    load=load,
    score=score_texts,
    metric="BLEU, METEOR, ROUGE-L, CIDEr and SPICE of the first 100 words.",
    prompt="Please describe the object in brief in the video.",
    postprocess=first_words,
    needs=frozenset({"java"}),
    published=(
        *published(
            _COLUMNS,
            "DAM (arXiv 2504.16072), Table 6",
            ("Osprey", "0.7 12.0 18.0 1.2 15.6"),
            ("Ferret-13B", "0.5 10.2 17.0 1.2 11.2"),
            ("Shikra", "1.3 11.5 19.3 3.1 13.6"),
            ("Merlin", "3.3 11.3 26.0 10.5 20.1"),
            ("Artemis", "15.5 18.0 40.8 53.2 25.4"),
            ("VideoRefer-7B", "16.5 18.7 42.4 68.6 28.3"),
            ("DAM-8B", "19.8 21.0 45.9 91.0 31.4"),
        ),
        *published(
            _COLUMNS,
            "PixelRefer (arXiv 2510.23603)",
            ("DAM-3B", "- 18.2 - 72.7 -"),
            ("PAM-3B", "- 23.3 - 70.3 -"),
            ("PixelRefer-2B", "17.2 19.5 43.8 78.9 30.1"),
            ("PixelRefer-7B", "20.1 21.1 46.1 97.4 32.5"),
        ),
    ),
)
