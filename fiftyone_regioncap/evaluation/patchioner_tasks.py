"""Patch-ioner's four tasks, from annotation files and images to the paper's metrics.

Traces, dense captions, sets of regions and whole images (arXiv 2510.02898). The paper
gives all numbers times 100, as :meth:`TaskScores.to_markdown` does. Its RefPAC score is
not among them: it needs the weights of PAC-S.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from fiftyone_regioncap.captioning.patchioner.aggregation import MEAN, Weighting
from fiftyone_regioncap.captioning.patchioner.model import Patchioner
from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.evaluation.captions import java, meteor, score_captions
from fiftyone_regioncap.evaluation.dense import DenseResult
from fiftyone_regioncap.evaluation.patchioner_regions import (
    Answer,
    DenseTask,
    Detection,
    Task,
    answer,
    load_items,
)

METRICS = ("bleu", "meteor", "rouge_l", "cider")
"""What is computed unless asked otherwise; the paper has SPICE too."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class TaskScores:
    """What came out of a task.

    Attributes:
        task: which of the four.
        items: how many were asked.
        failed: how many have no caption; they count as empty ones.
        metrics: over all items: BLEU-1 to 4, METEOR, ROUGE-L and SPICE in [0, 1], CIDEr
            up to 10; ``meteor_of_boxes`` is the mean of the dense task's own METEOR.
        dense: mean average precision in [0, 1], for the dense task; None elsewhere, or
            without Java, which METEOR needs.
        detection: mean average precision of the boxes alone, for the dense task.
        notes: what wasn't possible or is not as in the paper.
    """

    task: Task
    items: int
    failed: int
    metrics: dict[str, float]
    dense: DenseResult | None = None
    detection: float | None = None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        values["dense"] = None
        if self.dense is not None:
            values["dense"] = self.dense.mean
            values["dense_by_threshold"] = [
                {"iou": overlap, "meteor": said, "ap": value}
                for (overlap, said), value in self.dense.by_threshold.items()
            ]
        return values

    def to_markdown(self) -> str:
        """A table, times 100 as in the paper."""
        rows = dict(self.metrics)
        if self.dense is not None:
            rows["mAP"] = self.dense.mean
        if self.detection is not None:
            rows["mAP of boxes alone"] = self.detection
        lines = [
            f"**{self.items}** items of the {self.task} task, {self.failed} without a "
            "caption",
            "",
            "| metric | x 100 |",
            "|---|---|",
            *(f"| {name} | {100 * value:.2f} |" for name, value in rows.items()),
        ]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip()


def evaluate_task(
    task: Task,
    annotations: str | Path,
    images: str | Path,
    model: Patchioner,
    *,
    captions: str | Path | None = None,
    weighting: Weighting = MEAN,
    metrics: Sequence[str] = METRICS,
    limit: int | None = None,
    listener: Callable[[Answer], None] | None = None,
) -> TaskScores:
    """Describes the items of an annotation file, and scores the captions.

    Args:
        task: which of the four.
        annotations: the published file; see
            :func:`~fiftyone_regioncap.evaluation.patchioner_regions.load_items`.
        images: folder of the images, subfolders included.
        model: backbone and language part; ``compat="reference"`` for the published
            numbers.
        captions: for the image task, a COCO file of captions.
        weighting: of the patches of each region.
        metrics: some of :data:`fiftyone_regioncap.evaluation.captions.METRICS`.
        limit: images to look at, the first ones; None for all.
        listener: is given every answer.

    Raises:
        PromptError: when the file has another layout.
        RegionCapError: when an image is missing or no image, there is nothing to
            describe, or a metric is unknown.
        BackendError: when pycocoevalcap isn't there.
    """
    items = load_items(task, annotations, captions)
    groups = groupby(items, key=lambda item: item.image)
    items = [item for _, own in islice(groups, limit) for item in own]
    open_image = partial(_open, image_files(images), Path(images))
    answers = answer(model, items, open_image, weighting)
    return score_answers(task, _told(answers, listener), metrics)


def score_answers(
    task: Task, answers: Iterable[Answer], metrics: Sequence[str] = METRICS
) -> TaskScores:
    """Scores captions of a task as the paper does.

    Items without a caption count as empty captions. In the dense task, boxes are
    ordered by the reference's score where there is one, else by confidence.

    Args:
        task: which of the four.
        answers: those of an image together.
        metrics: some of :data:`fiftyone_regioncap.evaluation.captions.METRICS`.

    Raises:
        RegionCapError: when there are no answers, or a metric is unknown.
        BackendError: when pycocoevalcap isn't there.
    """
    said = list(answers)
    if not said:
        raise RegionCapError(f"there is nothing to describe in the {task} task")
    keys = [str(place) for place in range(len(said))]
    scored = score_captions(
        dict(zip(keys, (one.caption for one in said), strict=True)),
        dict(zip(keys, (one.item.references for one in said), strict=True)),
        metrics,
    )
    notes, overall = list(scored.notes), dict(scored.overall)
    dense, detection = None, None
    if task == "dense":
        boxes = DenseTask()
        for _, group in groupby(said, key=lambda one: one.item.image):
            own = list(group)
            boxes.add([_detection(one) for one in own], [one.item for one in own])
        detection = boxes.result().mean
        if java() is None:
            notes.append("mAP left out: its METEOR needs Java")
        else:
            meteors = boxes.meteors(partial(meteor, raw=True))
            dense = boxes.result(meteors)
            overall["meteor_of_boxes"] = sum(meteors) / len(meteors)
    return TaskScores(
        task=task,
        items=len(said),
        failed=sum(one.error is not None for one in said),
        metrics=overall,
        dense=dense,
        detection=detection,
        notes=tuple(notes),
    )


def image_files(folder: str | Path) -> dict[str, Path]:
    """The images of a folder by what annotation files call them.

    That is the file's name, with or without its suffix, or the number that it ends in
    (``COCO_val2014_000000000042.jpg`` is 42).

    Args:
        folder: subfolders are looked into too.

    Raises:
        RegionCapError: when it is no folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise RegionCapError(f"{root} is no folder of images")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES)
    numbers: dict[str, Path] = {}
    for path in paths:
        number = _NUMBER.search(path.stem)
        if number:
            numbers.setdefault(str(int(number[1])), path)
    names = {name: path for path in reversed(paths) for name in (path.stem, path.name)}
    return {**numbers, **names}


def _open(files: dict[str, Path], folder: Path, image: str) -> Frame:
    from fiftyone_regioncap.dataset.clips import read_image

    if image not in files:
        raise RegionCapError(
            f"{folder} has no image {image}; give the folder of the images that the "
            "annotations are of, or --limit to those that are there"
        )
    return read_image(str(files[image]))


def _told(
    answers: Iterable[Answer], listener: Callable[[Answer], None] | None
) -> Iterator[Answer]:
    for one in answers:
        if listener is not None:
            listener(one)
        yield one


def _detection(one: Answer) -> Detection:
    """An answered item of the dense task; what has no caption comes last."""
    assert one.item.boxes  # of the dense task
    sure = -1.0
    if one.description is not None:
        score = one.description.score
        sure = (one.description.confidence or 0.0) if score is None else score
    return Detection(one.item.boxes[0], one.caption, sure)


def answer_to_json(one: Answer) -> str:
    """One line of JSON for an answer."""
    return json.dumps(
        {
            "image": one.item.image,
            "boxes": one.item.boxes,
            "references": one.item.references,
            "caption": one.caption,
            "confidence": one.description.confidence if one.description else None,
            "error": one.error,
        },
        ensure_ascii=False,
    )
