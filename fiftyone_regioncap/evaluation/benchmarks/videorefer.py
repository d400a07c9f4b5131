"""VideoRefer-Bench (arXiv 2501.00599): objects of videos, described and asked about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
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
from fiftyone_regioncap.evaluation.benchmarks.judges import Question
from fiftyone_regioncap.evaluation.benchmarks.metrics import Means
from fiftyone_regioncap.evaluation.benchmarks.reading import find, read_records

_HUB = "huggingface.co/datasets/DAMO-NLP-SG/VideoRefer-Bench"
_PIXELREFER = "PixelRefer (arXiv 2510.23603)"
_README = "VideoRefer's README"

DIMENSIONS = {
    "subject": "Subject Correspondence",
    "appearance": "Appearance Description",
    "temporal": "Temporal Description",
    "hallucination": "Hallucination Detection",
}
"""What descriptions are judged by, as the judge's lines name it."""

INSTRUCTION = """\
Compare a predicted description of an object in a video with the correct one, and \
rate it from 0 (worst) to 5 (best), in whole numbers, on four dimensions: whether it \
is about the right subject; whether it gets the appearance right; whether it gets \
right what the object does over time; and whether it is free of details that are made \
up. Give a line for each, and after it a short explanation:
1. Subject Correspondence: <score>
2. Appearance Description: <score>
3. Temporal Description: <score>
4. Hallucination Detection: <score>
"""
"""What the judge is told unless the authors' ``system.txt`` is in the folder."""

_RATING = re.compile(r"\d+\.\s+(.*?):\s+([\d.]+)")


def tracked(annotation: Iterable[dict[str, Any]], which: int = 0) -> dict[int, Region]:
    """Returns the masks of one of an entry's objects by frame."""
    for number, frames in enumerate(annotation):
        if number == which:
            return {int(f): Region(one["segmentation"]) for f, one in frames.items()}
    return {}


def load_descriptions(folder: Path) -> Iterator[Item]:
    """Reads the described objects, one by one."""
    for entry in read_records(find(folder, "VideoRefer-Bench-D*.json")):
        regions = tracked(entry["annotation"])
        yield Item(str(entry["id"]), entry["video"], regions, (entry["caption"],))


def ratings(answer: str) -> dict[str, float]:
    """Reads a judge's lines as the authors' code does.

    Markdown around a name changes it, and that dimension is lost; a number that is none
    loses them all.
    """
    try:
        return {name: float(value) for name, value in _RATING.findall(answer)}
    except ValueError:
        return {}


def score_descriptions(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Averages a judge's ratings, each dimension over where it was read."""
    judge = tools.need_judge()
    path = tools.folder / "system.txt"
    theirs = path.exists()
    instruction = path.read_text(encoding="utf-8") if theirs else INSTRUCTION

    def asked() -> Iterator[tuple[Answer, list[Question]]]:
        for one in answers:
            truth = one.item.references[0]
            text = f"##Correct answer: {truth}\n##Predicted answer: {one.text}\n"
            question = Question(
                text, one.item.id, instruction, about=(one.text, truth), tries=5
            )
            yield one, [] if one.missing else [question]

    means, zeros, each = Means(), Means(), {}
    unreadable = 0
    for one, said in judge.each(asked()):
        found = ratings(said[0] or "") if said else {}
        known = {key: found[n] for key, n in DIMENSIONS.items() if n in found}
        means.add(**known)
        zeros.add(**{key: known.get(key, 0.0) for key in DIMENSIONS})
        unreadable += len(known) < len(DIMENSIONS) and not one.missing
        each[one.item.id] = sum(known.values()) / len(DIMENSIONS)
    overall = {key: means.result().get(key, 0.0) for key in DIMENSIONS}
    overall["average"] = sum(overall.values()) / len(DIMENSIONS)
    filled = zeros.result().values()
    overall["average_missing_as_0"] = sum(filled) / len(DIMENSIONS)
    counts = {f"{key}_judged": means.counts.get(key, 0) for key in DIMENSIONS}
    note = (
        ()
        if theirs
        else (
            "the judge's instruction is ours; put the authors' `system.txt` into the "
            "folder for numbers to compare",
        )
    )
    return Scores(overall, each, {**counts, "unreadable": unreadable}, note, theirs)


def load_questions(folder: Path) -> Iterator[Item]:
    """Reads the questions, one by one; the first object's masks mark the region."""
    for entry in read_records(find(folder, "VideoRefer-Bench-Q*.json")):
        options = " ".join(entry["options"])
        yield Item(
            str(entry["id"]),
            entry["video"],
            tracked(entry["annotation"]),
            (entry["Answer"],),
            f"{entry['Question']} {options}. Answer with the option's letter from the "
            "given choices directly.",
            {"type": entry["type"]},
        )


def letter(text: str) -> str:
    """Finds the letter of an answer as the authors' code does, in lower case.

    Returns:
        The letter of the first "(X)", else of the first "X)", else the first character
        that is no full stop; nothing of an empty answer.
    """
    found = re.search(r"\(([A-Z])\)", text) or re.search(r"([A-Z])\)", text)
    said = found[1] if found else text.replace(".", "")[:1]
    return said.lower()


TYPES = {
    "Basic Questions": "basic",
    "Sequential Questions": "sequential",
    "Relationship Questions": "relationship",
    "Reasoning Questions": "reasoning",
    "Future Predictions": "future",
}


def score_questions(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Counts right letters, by type of question and over all questions."""
    means, each = Means(), {}
    empty = 0
    for one in answers:
        kind = one.item.values["type"]
        found = letter(one.text)
        empty += not found
        right = float(found == letter(one.item.references[0]))
        means.add(**{TYPES.get(kind, kind): right, "average": right})
        each[one.item.id] = right
    values = means.result()
    order = [*(name for name in values if name != "average"), "average"]
    counts = {f"{name}_asked": means.counts[name] for name in order if name in values}
    overall = {name: values[name] for name in order if name in values}
    return Scores(overall, each, {**counts, "empty": empty})


DESCRIPTION = Benchmark(
    name="videorefer-bench-d",
    title="VideoRefer-Bench-D",
    summary="Describes what a marked object of a video looks like and does.",
    unit="track",
    size="400 objects",
    license="not stated; the videos under Panda-70M's terms",
    files=(
        File("VideoRefer-Bench-D*.json", _HUB),
        File("system.txt", "github.com/DAMO-NLP-SG/VideoRefer, the judge's text", True),
    ),
    load=load_descriptions,
    score=score_descriptions,
    metric="A judge (GPT-4o) rates four dimensions from 0 to 5; mean of the means.",
    prompt="Please describe in detail the marked object in the video.",
    needs=frozenset({"judge"}),
    scale=1,
    published=(
        *published(
            "subject appearance temporal hallucination average",
            _README,
            ("GPT-4o, one frame's mask", "3.34 2.96 3.01 2.50 2.95"),
            ("GPT-4o", "4.15 3.31 3.11 2.43 3.25"),
            ("VideoRefer-7B, one frame's mask", "4.41 3.27 3.03 2.97 3.42"),
            ("VideoRefer-7B", "4.44 3.27 3.10 3.04 3.46"),
            ("VideoRefer-VideoLLaMA3-7B, one frame's mask", "4.63 3.59 3.38 3.29 3.72"),
        ),
        *published(
            "subject appearance temporal hallucination average",
            "DAM (arXiv 2504.16072), Table 7",
            ("Elysium, one frame's mask", "2.35 0.30 0.02 3.59 1.57"),
            ("Artemis, one frame's mask", "3.42 1.34 1.39 2.90 2.26"),
            ("DAM-8B, zero-shot", "4.45 3.30 3.03 2.58 3.34"),
            ("DAM-8B, in-domain", "4.69 3.61 3.34 3.09 3.68"),
        ),
        *published(
            "subject appearance temporal hallucination average",
            _PIXELREFER,
            ("DAM-3B", "3.62 2.86 2.81 2.67 2.99"),
            ("PAM-3B, one frame's mask", "3.92 2.84 2.88 2.94 3.14"),
            ("PixelRefer-2B, one frame's mask", "4.59 3.40 3.25 3.09 3.58"),
            ("PixelRefer-7B, one frame's mask", "4.70 3.59 3.39 3.13 3.70"),
        ),
    ),
    traps=(
        "Each dimension is averaged over the entries that it was read of, so that the "
        "denominators differ; `average_missing_as_0` counts the others as 0.",
        "Hallucination punishes right details that the reference lacks.",
    ),
)

QUESTIONS = Benchmark(
    name="videorefer-bench-q",
    title="VideoRefer-Bench-Q",
    summary="Answers multiple-choice questions about marked objects of a video.",
    unit="track",
    size="1,000 questions",
    license="not stated; the videos under MeViS' and DAVIS' terms",
    files=(File("VideoRefer-Bench-Q*.json", _HUB),),
    load=load_questions,
    score=score_questions,
    metric="Accuracy of the letter, by type of question and over all questions.",
    follows=True,
    published=(
        *published(
            "basic sequential relationship reasoning future average",
            _README,
            ("GPT-4o", "62.3 74.5 66.0 88.0 73.7 71.3"),
            ("Qwen2-VL-7B", "62.0 69.6 54.9 87.3 74.6 66.0"),
            ("VideoRefer-7B", "75.4 68.6 59.3 89.4 78.1 71.9"),
            ("VideoRefer-VideoLLaMA3-7B", "88.1 77.7 70.2 88.8 79.8 80.1"),
        ),
        *published(
            "basic sequential relationship reasoning future average",
            _PIXELREFER,
            ("PixelRefer-2B", "82.1 73.0 64.7 90.2 81.6 76.5"),
            ("PixelRefer-7B", "84.5 76.9 71.5 89.5 79.7 79.4"),
        ),
    ),
    traps=(
        "`A cat` counts as the letter A; an empty answer is wrong here, and crashes "
        "the authors' code.",
        "Only the first object of a question is marked for captioners of one region.",
    ),
)
