"""Evaluates the captions of a dataset, and keeps the result with it."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.view as fov
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.core.progress import ProgressListener, tracked
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.fields import require_output
from fiftyone_regioncap.dataset.runs import record_run
from fiftyone_regioncap.dataset.store import Document
from fiftyone_regioncap.evaluation.captions import (
    bleu,
    meteor,
    score_captions,
    shared_meteor,
    tokenize,
)
from fiftyone_regioncap.evaluation.dense import (
    Match,
    box_iou,
    dense_map,
    match,
    merged,
    support_iou,
)
from fiftyone_regioncap.evaluation.options import EvaluateOptions
from fiftyone_regioncap.review.preferences import Preferences, preferences
from fiftyone_regioncap.search import embedding
from fiftyone_regioncap.search.embedding import DEFAULT_MODEL, TextEmbedder

SAME = 0.5
"""Overlap from which several references of one object are all of one caption."""

SMALL, MEDIUM = 32**2 / (640 * 480), 96**2 / (640 * 480)
"""Shares of the frame below which objects are small, and medium: COCO's limits of 32²
and 96² pixels, on images of its usual size."""

_ATTRIBUTES = ("label", "support", "index", "confidence", "mean_area", "bounding_box")
_ORDER = ("meteor", "similarity", "cider", "rouge_l", "bleu_4", "bleu_1")


@dataclass(frozen=True)
class CaptionEvaluation:
    """Results of an evaluation of captions.

    Attributes:
        key: Key of the dataset's custom run that records it.
        captions: Field that was evaluated.
        count: Number of captions that had a reference.
        without_reference: Number of captions that had none.
        missed: Number of objects with references that no caption was matched with.
        overall: Scores by metric.
        by_label: Scores by label, then by metric.
        by_size: Scores by ``small``, ``medium``, ``large`` and ``unknown``, then by
            metric.
        dense: Dense captioning mAP, over overlaps and texts; None without METEOR.
        dense_by_threshold: AP by ``"iou 0.5, meteor 0.1"``.
        each: Scores by metric, then by label id.
        notes: Notes on what wasn't possible, and how to make it so.
        judged: What people preferred to the references, in the review panel; None
            where nobody has said, or both fields are the same.
    """

    key: str
    captions: CaptionField
    count: int
    without_reference: int
    missed: int
    overall: dict[str, float]
    by_label: dict[str, dict[str, float]]
    by_size: dict[str, dict[str, float]]
    dense: float | None
    dense_by_threshold: dict[str, float]
    each: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    judged: Preferences | None = None

    def worst(self, k: int = 25, metric: str | None = None) -> fov.DatasetView:
        """Returns captions with the lowest scores as clips or patches, lowest first.

        Args:
            k: Maximum number of captions.
            metric: Metric to order by; None for the best one there is.

        Raises:
            FieldError: When there is no such metric.
        """
        metric = metric or next(name for name in _ORDER if name in self.each)
        if metric not in self.each:
            raise FieldError(f"no metric {metric!r}; there are: {', '.join(self.each)}")
        scores = self.each[metric]
        return self.captions.view(sorted(scores, key=scores.__getitem__)[:k])

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as JSON values."""
        return {
            "key": self.key,
            "dataset": self.captions.dataset.name,
            "captions": self.captions.name,
            "count": self.count,
            "without_reference": self.without_reference,
            "missed": self.missed,
            "overall": self.overall,
            "by_label": self.by_label,
            "by_size": self.by_size,
            "dense_map": self.dense,
            "dense_map_by_threshold": self.dense_by_threshold,
            "notes": list(self.notes),
            "preferred": None if self.judged is None else dict(self.judged.preferred),
            "chance": None if self.judged is None else self.judged.chance,
        }

    def to_markdown(self) -> str:
        """Tables for people."""
        lines = [
            f"**{self.count}** captions compared; {self.without_reference} without a "
            f"reference, {self.missed} references without a caption"
        ]
        if self.dense is not None:
            lines.append(f"dense captioning mAP **{self.dense:.4f}**")
        lines += [
            _table("", {"all": self.overall}),
            _table("label", self.by_label),
            _table("size", self.by_size),
            *([] if self.judged is None else [self.judged.to_markdown().strip()]),
            *(f"- {escape(note)}" for note in self.notes),
        ]
        return "\n\n".join(lines) + "\n"

    def plot(self, metric: str | None = None) -> Any:
        """Plots the distribution of a metric over captions, by label, with plotly.

        Args:
            metric: Metric to show; None for the best one there is.
        """
        import plotly.graph_objects as go

        metric = metric or next(name for name in _ORDER if name in self.each)
        scores = self.each[metric]
        ids, labels = self.captions.dataset.values(
            [f"{self.captions.labels}.id", f"{self.captions.labels}.label"],
            unwind=True,
        )
        by_label: dict[str, list[float]] = defaultdict(list)
        for label_id, label in zip(ids, labels, strict=True):
            if label_id in scores:
                by_label[label or "(none)"].append(scores[label_id])
        order = sorted(by_label, key=lambda label: float(np.median(by_label[label])))
        return go.Figure(
            [
                go.Box(x=by_label[name], name=_plain(name), boxpoints="outliers")
                for name in order
            ],
            {"title": {"text": f"{metric} of {self.count} captions by label"}},
        )

    def write(self, folder: str | Path) -> list[Path]:
        """Writes ``<key>.json``, ``<key>.md`` and ``<key>.html`` with the plot.

        Args:
            folder: Folder, which is made when it doesn't exist.

        Returns:
            Paths of the files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.key}.{suffix}" for suffix in ("json", "md", "html")]
        document = {**self.to_dict(), "each": self.each}
        files[0].write_text(json.dumps(document, indent=2), encoding="utf-8")
        files[1].write_text(self.to_markdown(), encoding="utf-8")
        if self.each:
            self.plot().write_html(files[2], include_plotlyjs=True)
        return [file for file in files if file.exists()]


@dataclass(frozen=True)
class _Text:
    """A caption or a reference.

    Attributes:
        id: Id of the label.
        text: The text itself.
        label: The short name.
        support: (first, last) frames of a video, as FiftyOne counts them.
        index: The object id.
        box: Box of a region of an image, as FiftyOne stores it.
        confidence: Its confidence; 1 where none is known.
        area: Share of the frame's area.
    """

    id: str
    text: str
    label: str | None
    support: tuple[float, ...] | None
    index: int | None
    box: tuple[float, ...] | None
    confidence: float
    area: float | None

    @classmethod
    def of(cls, label: Document, attribute: str) -> _Text:
        """Reads a caption from a label."""
        support, box = label.get("support"), label.get("bounding_box")
        area, confidence = label.get("mean_area"), label.get("confidence")
        return cls(
            id=str(label["_id"]),
            text=label.get(attribute) or "",
            label=label.get("label"),
            support=tuple(support) if support else None,
            index=label.get("index"),
            box=tuple(box) if box else None,
            confidence=1.0 if confidence is None else float(confidence),
            area=box[2] * box[3] if area is None and box else area,
        )

    def overlap(self, other: _Text) -> float:
        """Returns the IoU in time, or in the image; 0 when objects differ."""
        if None not in (self.index, other.index) and self.index != other.index:
            return 0.0
        if self.support and other.support:
            return support_iou(self.support, other.support)
        if self.box and other.box:
            return box_iou(self.box, other.box)
        return 0.0

    @property
    def size(self) -> str:
        """Size class, as COCO defines it: small, medium or large."""
        if self.area is None:
            return "unknown"
        if self.area < SMALL:
            return "small"
        return "medium" if self.area < MEDIUM else "large"


@shared_meteor()
def evaluate_captions(
    samples: foco.SampleCollection,
    options: EvaluateOptions,
    *,
    model: TextEmbedder | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> CaptionEvaluation:
    """Compares captions with references, and keeps the scores with the dataset.

    A caption's references are those of the same ``index`` that overlap it in time
    (videos) or in place (images); where there are no indices, the overlap alone counts.
    With the same field for both, a label's two attributes are compared, such as
    ``source_caption``, what a model said, with ``caption``, what a person made of it.

    Each caption gets ``<key>_<metric>`` for each metric and ``<key>_iou``; the dataset
    gets a custom run of this key, in the place of an earlier one.

    Args:
        samples: A dataset or a view.
        options: The fields, the metrics, and the key of the run.
        model: Loaded model for similarity, in place of the one that ``options`` name.
        listener: Called with progress events while captions are read.
        cancel: Set it to stop before the next sample.

    Raises:
        FieldError: When a field is absent or of the wrong kind, both are the same, or
            no caption has a reference.
        BackendError: When a metric's package isn't there.
    """
    captions, references = options.captions, options.references
    key = require_output(options.key)
    own = CaptionField.of(samples, captions)
    theirs = CaptionField.of(samples, references)
    same = captions == references
    attribute = options.caption_attribute or ("source_caption" if same else "caption")
    if same and attribute == options.reference_attribute:
        raise FieldError(
            f"{captions}.{attribute} would be compared with itself; name "
            "another field or attribute for the references"
        )
    said = _read(samples, own, attribute, listener, cancel)
    wanted = _read(samples, theirs, options.reference_attribute, listener, cancel)
    pairs: dict[str, list[_Text]] = {}
    texts: dict[str, _Text] = {}
    said_of: dict[str, list[str]] = {}
    best: dict[str, float] = {}
    matches: list[Match] = []
    without = total = 0
    for sample in {**said, **wanted}:
        mine, others = said.get(sample, []), wanted.get(sample, [])
        others = [text for text in others if text.text.strip()]
        if same:
            mine = [text for text in mine if text.text]
        ious = _overlaps(mine, others, same)
        objects = _objects(others, same)
        total += len(objects)
        said_of |= {one.id: [o.text for o in own] for one, own in objects}
        matches += match(
            [text.id for text in mine],
            [one.id for one, _ in objects],
            [text.confidence for text in mine],
            _overlaps(mine, [one for one, _ in objects], same),
        )
        for text, row in zip(mine, ious, strict=True):
            texts[text.id] = text
            best[text.id] = max(row, default=0.0)
            least = min(SAME, best[text.id])
            found = [o for o, iou in zip(others, row, strict=True) if iou >= least > 0]
            if found:
                pairs[text.id] = found
            else:
                without += 1
    if not pairs:
        raise FieldError(
            f"no caption of {captions} has a reference in {references}: none overlaps "
            "one of the same index"
        )
    embedder, notes = _embedder(options, model)
    candidates = {label_id: texts[label_id].text for label_id in pairs}
    targets = {label_id: [o.text for o in found] for label_id, found in pairs.items()}
    scores = score_captions(candidates, targets, options.metrics, embedder=embedder)
    notes += scores.notes
    dense, table = (
        _dense(matches, texts, said_of, total)
        if "meteor" in scores.overall
        else (None, {})
    )
    judged = None if same else preferences(samples, references, captions)
    result = CaptionEvaluation(
        key=key,
        captions=own,
        count=len(pairs),
        without_reference=without,
        missed=total - len({m.reference for m in matches if m.reference}),
        overall=scores.overall,
        by_label=_grouped(
            {i: texts[i].label or pairs[i][0].label or "(none)" for i in pairs},
            scores.each,
            candidates,
            targets,
        ),
        by_size=_grouped(
            {i: _size(texts[i], pairs[i]) for i in pairs},
            scores.each,
            candidates,
            targets,
        ),
        dense=dense,
        dense_by_threshold=table,
        each=scores.each,
        notes=tuple(notes),
        judged=judged if judged is not None and judged.preferred else None,
    )
    _store(result, best, options)
    if options.output is not None:
        result.write(options.output)
    return result


def _read(
    samples: foco.SampleCollection,
    field: CaptionField,
    attribute: str,
    listener: ProgressListener | None,
    cancel: threading.Event | None,
) -> dict[str, list[_Text]]:
    """Returns texts by sample, also those that are empty."""
    read = field.in_view(samples, (*_ATTRIBUTES, attribute))
    return {
        str(sample["_id"]): [
            _Text.of(label, attribute)
            for label in labels
            if label.get(attribute) is not None
        ]
        for sample, labels in tracked(
            read, "read", field.name, len(samples), listener, cancel
        )
    }


def _overlaps(
    mine: Sequence[_Text], others: Sequence[_Text], same: bool
) -> NDArray[np.float64]:
    """Returns overlaps, (mine, others); within one field, each overlaps itself."""
    return np.array(
        [
            [
                float(one.id == other.id) if same else one.overlap(other)
                for other in others
            ]
            for one in mine
        ],
        float,
    ).reshape(len(mine), len(others))


def _objects(
    references: Sequence[_Text], same: bool
) -> list[tuple[_Text, list[_Text]]]:
    """Returns each referenced object, in its mean place, with its references."""
    found = []
    for group in merged(_overlaps(references, references, same)):
        own = [references[i] for i in group]
        first = own[0]
        if first.support:
            first = replace(first, support=_mean([r.support for r in own]))
        elif first.box:
            first = replace(first, box=_mean([r.box for r in own]))
        found.append((first, own))
    return found


def _mean(places: Sequence[Sequence[float] | None]) -> tuple[float, ...]:
    return tuple(np.mean([place for place in places if place], axis=0).tolist())


def _embedder(
    options: EvaluateOptions, model: TextEmbedder | None
) -> tuple[TextEmbedder | None, list[str]]:
    """Returns the model for similarity, or why there is none."""
    if "similarity" not in options.metrics:
        return None, []
    if model is not None:
        return model, []
    name = options.model or DEFAULT_MODEL
    missing = embedding.missing(name)
    if missing is not None:
        return None, [missing]
    return embedding.load(name, options.device), []


def _dense(
    matches: Sequence[Match],
    texts: Mapping[str, _Text],
    said_of: Mapping[str, Sequence[str]],
    total: int,
) -> tuple[float, dict[str, float]]:
    placed = [m for m in matches if m.reference is not None]
    scored = meteor(
        [(texts[m.caption].text, said_of[str(m.reference)]) for m in placed]
    )
    scores = dict(zip((m.caption for m in placed), scored, strict=True))
    result = dense_map(matches, [scores.get(m.caption, 0.0) for m in matches], total)
    table = {
        f"iou {iou}, meteor {score}": value
        for (iou, score), value in result.by_threshold.items()
    }
    return result.mean, table


def _size(text: _Text, references: Sequence[_Text]) -> str:
    sizes = (text.size, *(reference.size for reference in references))
    return next((size for size in sizes if size != "unknown"), "unknown")


def _grouped(
    groups: Mapping[str, str],
    each: Mapping[str, Mapping[str, float]],
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, float]]:
    """Scores of groups: BLEU over a group's words, the others as means."""
    members: dict[str, list[str]] = defaultdict(list)
    for label_id, group in groups.items():
        members[group].append(label_id)
    tokens = targets = {}
    if "bleu_1" in each:
        tokens = tokenize({key: [text] for key, text in candidates.items()})
        targets = tokenize(references)
    result = {}
    for group, ids in sorted(members.items()):
        values = {"count": float(len(ids))}
        if tokens:
            values |= bleu({i: tokens[i] for i in ids}, {i: targets[i] for i in ids})
        values |= {
            name: float(np.mean([scores[i] for i in ids]))
            for name, scores in each.items()
            if name not in values
        }
        result[group] = values
    return result


def _store(
    result: CaptionEvaluation,
    ious: Mapping[str, float],
    options: EvaluateOptions,
) -> None:
    """Writes the scores of captions and the custom run."""
    for name, scores in {**result.each, "iou": ious}.items():
        result.captions.write(f"{result.key}_{name}", scores, fo.FloatField)
    record_run(
        result.captions.dataset,
        result.key,
        {
            "captions": options.captions,
            "references": options.references,
            "metrics": list(options.metrics),
        },
        {"evaluation": result.to_dict()},
    )


def _table(head: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a Markdown table, one row a group."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    lines = [f"| {head} | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for group, values in rows.items():
        cells = [
            f"{values[name]:.0f}" if name == "count" else f"{values[name]:.4f}"
            for name in names
        ]
        lines.append(f"| {_plain(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Returns the text as text in Markdown tables and in plotly, which reads HTML."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return " ".join(safe.split())
