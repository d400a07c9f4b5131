"""PLM-VideoBench (arXiv 2504.13180): RCap, RDCap and RTLoc of its region tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
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
from fiftyone_regioncap.evaluation.benchmarks.judges import Question
from fiftyone_regioncap.evaluation.benchmarks.metrics import (
    Means,
    best_in_order,
    span_iou,
)
from fiftyone_regioncap.evaluation.benchmarks.reading import find, read_records

FRAMES = 32
"""Number of frames of a video that models see, and that spans are counted in."""

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)

INSTRUCTION = """\
Rate how well a predicted caption agrees with the correct one, with one whole number \
from 0 to 10: 10 when all that the correct caption says is there and right, less for \
what is missing or wrong, the more so the more it matters. What is said beyond the \
correct caption costs nothing unless it contradicts it; wording doesn't count. Answer \
in JSON: {"score": <int>, "explanation": "<a short sentence>"}
"""
"""What the judge is told unless a file ``judge.txt`` in the folder says it."""

_QUESTIONS = {
    "rcap": "Describe in detail what happens in the region marked by the red rectangle "
    "within frames [{0}, {1}] of this {total} frame video.",
    "rdcap": "Describe all that the subject in the red rectangles does, an event a "
    "line, as [start, end]: [description]; start and end are frame numbers between 0 "
    "and 31 of this 32 frame video.",
    "rtloc": "When does '{caption}' happen in the region marked by the red rectangle? "
    "Answer as [start, end], frame numbers between 0 and 31 of this 32 frame video.",
}
"""What models are asked; the sense of lmms-eval's prompts, whose RCap names the frames
of 32 and yet the original number of frames."""


def shown_frames(total: int) -> list[int]:
    """Returns the frames of a video that models see; all of a shorter one."""
    if total <= FRAMES:
        return list(range(total))
    return [round(i * (total - 1) / (FRAMES - 1)) for i in range(FRAMES)]


def load(folder: Path, task: str) -> Iterator[Item]:
    """Reads the items of a task, one by one; boxes are of another file."""
    boxes = {}
    if list(folder.glob("metadata*.jsonl")):
        for entry in read_records(find(folder, "metadata*.jsonl")):
            boxes[entry["video"], entry["masklet_id"]] = entry["bbox"]
    for entry in read_records(find(folder, f"*{task}*.jsonl")):
        total = entry["total_frames"]
        events = entry.get("dense_captions", [entry])
        spans = [
            [int(one[key] / (total / FRAMES)) for key in ("start_frame", "end_frame")]
            for one in events
        ]
        first, last = (events[0]["start_frame"], events[-1]["end_frame"])
        wanted = range(first, last + 1) if task == "rcap" else set(shown_frames(total))
        own = boxes.get((entry["video"], entry["masklet_id"]), {})
        regions = {
            int(frame): Region(boxes=(tuple(box),))
            for frame, box in own.items()
            if box and int(frame) in wanted
        }
        question = _QUESTIONS[task].format(
            *spans[0], total=total, caption=entry.get("caption", "")
        )
        yield Item(
            str(entry["uid"]),
            entry["video"],
            regions,
            tuple(one["caption"] for one in events),
            None if task == "rcap" else question,
            {"spans": spans, "question": question, "total": total},
        )


def judged(answer: str | None) -> float | None:
    """Reads a judge's rating, in [0, 1]; None when it is no JSON object with one."""
    try:
        return float(json.loads(answer or "")["score"]) / 10
    except (ValueError, KeyError, TypeError):
        return None


def _question(item: Item, said: str, truth: str, instruction: str) -> Question:
    text = (
        f"Predicted caption: {said}\nGround truth caption: {truth}\n\n"
        "Answer with the JSON alone."
    )
    settings = {"temperature": 0, "max_tokens": 256}
    return Question(text, item.id, instruction, settings, about=(said, truth))


def _instruction(tools: Tools) -> tuple[str, tuple[str, ...]]:
    path = tools.folder / "judge.txt"
    if path.exists():
        return path.read_text(encoding="utf-8"), ()
    note = (
        "the judge's instruction is ours; put lmms-eval's as `judge.txt` into the "
        "folder for numbers to compare"
    )
    return INSTRUCTION, (note,)


def score_captions(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Averages a judge's ratings; one that can't be read is 0."""
    instruction, notes = _instruction(tools)

    def asked() -> Iterator[tuple[Answer, list[Question]]]:
        for one in answers:
            truth = one.item.references[0]
            question = _question(one.item, one.text, truth, instruction)
            yield one, [] if one.missing else [question]

    means, each = Means(), {}
    for one, said in tools.need_judge().each(asked()):
        value = judged(said[0]) if said else None
        each[one.item.id] = value or 0.0
        means.add(score=value or 0.0, success_rate=float(value is not None))
    unreadable = sum(means.counts.values()) // 2
    overall = means.result()
    read = round(overall.get("success_rate", 0) * unreadable)
    return Scores(
        overall, each, {"unreadable": unreadable - read}, notes, comparable=not notes
    )


def events(text: str) -> list[tuple[list[int], str]]:
    """Reads "[start, end]: text" lines; texts lose colons and a comma at the end."""
    found = []
    for span, said in re.findall(r"\[(\d+,\s*\d+)\]([^[]*)", text):
        said = said.replace(":", " ").replace("\nFrame ", "").strip()
        said = said.removesuffix(",").strip().replace("\n", " ").strip()
        found.append(([int(edge) for edge in span.split(",")], said))
    return found


def score_dense(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Computes SODA_c: events matched in order by IoU times a judge's rating, as F1."""
    instruction, notes = _instruction(tools)

    def asked() -> Iterator[tuple[Answer, list[Question]]]:
        for one in answers:
            yield (
                one,
                [
                    _question(one.item, said, truth, instruction)
                    for truth in one.item.references
                    for _, said in events(one.text)
                ],
            )

    means, each, unreadable, unparsed = Means(), {}, 0, 0
    for one, found in tools.need_judge().each(asked()):
        ratings = [judged(answer) for answer in found]
        unreadable += ratings.count(None)
        unparsed += not found
        value = soda(one.item.values["spans"], events(one.text), ratings)
        each[one.item.id] = value
        means.add(soda_c=value)
    counts = {"unreadable": unreadable, "without_events": unparsed}
    return Scores(means.result(), each, counts, notes, comparable=not notes)


def soda(
    spans: list[list[int]],
    predicted: list[tuple[list[int], str]],
    ratings: list[float | None],
) -> float:
    """Computes SODA_c of one video (Fujita et al., ECCV 2020), in [0, 1].

    Args:
        spans: True events.
        predicted: Predicted events.
        ratings: Ratings of all pairs, true event by true event.
    """
    if not predicted:
        return 0.0
    ious = np.array([[span_iou(own, span) for own, _ in predicted] for span in spans])
    values = np.array([rating or 0.0 for rating in ratings]).reshape(ious.shape)
    total = best_in_order(ious * values)
    precision, recall = total / len(predicted), total / len(spans)
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


_SPAN = re.compile(r"\[([0-9]+(?:\.[0-9]+)?),\s*([0-9]+(?:\.[0-9]+)?)\]")


def score_localization(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Compares the first span of an answer with the true one."""
    means, each, unreadable = Means(), {}, 0
    for one in answers:
        found = _SPAN.search(one.text)
        unreadable += found is None
        iou = 0.0
        if found is not None:
            iou = span_iou([float(edge) for edge in found.groups()], _target(one))
        reached = sum(iou > threshold for threshold in THRESHOLDS) / len(THRESHOLDS)
        means.add(mean_recall=reached, mean_precision=reached, mean_iou=iou)
        each[one.item.id] = iou
    return Scores(means.result(), each, {"unreadable": unreadable})


def _target(answer: Answer) -> Any:
    return answer.item.values["spans"][0]


_HUB = "huggingface.co/datasets/facebook/PLM-VideoBench"
_README = "PLM-VideoBench's README"
_LICENSE = "Meta's FAIR Noncommercial Research License; videos of SA-V, CC BY 4.0"


_METHODS = (
    "human",
    "GPT-4o",
    "Gemini 1.5 Pro",
    "Qwen2.5-VL-7B",
    "InternVL2.5-8B",
    "PLM-8B",
)


def _declare(task: str, column: str, values: str, **own: Any) -> Benchmark:
    """Declares a task; the values are those of the methods, separated by blanks."""
    rows = zip(_METHODS, values.split(), strict=True)
    return Benchmark(
        name=f"plm-{task}",
        unit="track",
        license=_LICENSE,
        files=(
            File(f"*{task}*.jsonl", f"{_HUB}, {task}"),
            File("metadata*.jsonl", f"{_HUB}, metadata", optional=True),
        ),
        load=partial(load, task=task),
        published=published(column, _README, *rows),
        **own,
    )


RCAP = _declare(
    "rcap",
    "score",
    "53.9 35.7 33.1 21.5 26.1 46.6",
    title="PLM-VideoBench RCap",
    summary="Describes what a marked subject does in a part of a video.",
    size="10,060 events",
    score=score_captions,
    metric="A judge (Llama-3.3-70B-Instruct) rates from 0 to 10; mean.",
    needs=frozenset({"judge"}),
    traps=(
        "Our runs show the frames of the event; the protocol shows 32 frames of the "
        "whole video with red rectangles, and names the event's frames.",
    ),
)
RDCAP = _declare(
    "rdcap",
    "soda_c",
    "66.6 20.9 14.4 2.5 5.7 52.8",
    title="PLM-VideoBench RDCap",
    summary="Describes all that a marked subject does in a video, with the frames.",
    size="2,620 videos",
    score=score_dense,
    metric="SODA_c: events matched in order by IoU times a judge's rating, as F1.",
    follows=True,
    needs=frozenset({"judge"}),
)
RTLOC = _declare(
    "rtloc",
    "mean_recall",
    "67.8 33.1 27.6 10.7 8.8 59.1",
    title="PLM-VideoBench RTLoc",
    summary="Finds the frames in which a marked subject does what a text says.",
    size="7,910 events",
    score=score_localization,
    metric="Share of spans whose IoU is over 0.3, 0.5, 0.7 and 0.9; mean of the four.",
    follows=True,
)
