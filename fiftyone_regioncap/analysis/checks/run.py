"""Checks the captions of a dataset, and writes the findings onto them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco
import numpy as np
from fiftyone import ViewField as F

from fiftyone_regioncap.analysis.checks.measurements import (
    color_conflict,
    motion_conflict,
)
from fiftyone_regioncap.analysis.checks.similarity import ATTRIBUTE, fits
from fiftyone_regioncap.analysis.checks.texts import repetition, truncation
from fiftyone_regioncap.analysis.checks.tracks import (
    Statement,
    contradictions,
    indistinct,
)
from fiftyone_regioncap.analysis.options import CheckOptions
from fiftyone_regioncap.captioning.base import TextEncoder
from fiftyone_regioncap.core.markdown import code
from fiftyone_regioncap.core.progress import ProgressListener, tracked
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.store import Document

CHECKS = ("color", "motion", "repetition", "truncation", "consistency", "uniqueness")
"""The checks that are always made."""

SIMILARITY = "similarity"
"""The check that is made where it is asked for."""

FROM = {"repetition": 0.3}
"""Score from which a check counts as failed, where it isn't :data:`DEFAULT_FROM`."""

DEFAULT_FROM = 0.7

_ATTRIBUTES = (
    *("caption", "label", "support", "index", "attributes", "attribute_scores"),
    *("dominant_color", "direction", "speed", "mean_area", "error"),
)
_STRONG_COLOR = 0.2


@dataclass(frozen=True)
class CheckFinding:
    """A finding of a check on a caption.

    Attributes:
        check: One of :data:`CHECKS`, or :data:`SIMILARITY`.
        score: Score in [0, 1]; 1 is surely bad.
        why: The reason, for people.
    """

    check: str
    score: float
    why: str

    @property
    def failed(self) -> bool:
        """Whether a person should look at it."""
        return self.score >= FROM.get(self.check, DEFAULT_FROM)


@dataclass(frozen=True)
class CheckSummary:
    """The findings on all captions.

    Attributes:
        captions: Number of captions that were checked.
        failed: Number of those that failed at least one check.
        by_check: Number of those that failed, by check.
        views: Names of the saved views, by check that some captions failed.
        similarity: Quartiles of the cosines of captions and regions, to choose
            thresholds by; None where they were not compared.
    """

    captions: int
    failed: int
    by_check: dict[str, int]
    views: dict[str, str]
    similarity: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Returns a few lines for people, as Markdown."""
        lines = [f"**{self.failed}** of {self.captions} captions failed a check"]
        lines += [
            f"- {count} {check}: view {code(self.views[check])}"
            for check, count in self.by_check.items()
            if count
        ]
        if self.similarity is not None:
            low, middle, high = self.similarity
            lines.append(
                f"- `{ATTRIBUTE}`: a quarter under {low:.3f}, half under {middle:.3f}, "
                f"a quarter over {high:.3f}"
            )
        return "\n".join(lines)


def check_captions(
    samples: foco.SampleCollection,
    options: CheckOptions = CheckOptions(),  # noqa: B008
    *,
    model: TextEncoder | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> CheckSummary:
    """Finds captions that are probably bad.

    Labels get ``check_<check>``, a score in [0, 1] where 1 is surely bad and None means
    that nothing could be compared; ``check_score``, the worst of them; ``checks``, the
    names of the checks that failed; and ``check_notes``, why. A view of the captions
    that failed is saved for each check.

    With ``similarity``, captions are also compared with the images of their regions, as
    far as regions were embedded: labels get ``image_text_similarity`` too, the cosine,
    which is larger for better captions and of use to :func:`~.triage.triage`.

    Args:
        samples: A dataset or a view; captions are compared with those that are in it.
        options: Options of the checks.
        model: Text encoder to use in place of the one that ``options`` name.
        listener: Called with progress events.
        cancel: Set it to stop before the next sample.

    Raises:
        FieldError: If the field is absent or can't have captions, or holds no region
            embeddings and they are asked for.
        BackendError: If the model isn't at hand, or isn't the one that embedded the
            regions.
    """
    captions = CaptionField.of(samples, options.captions)
    checks = (*CHECKS, SIMILARITY) if options.similarity else CHECKS
    found: dict[str, list[CheckFinding]] = {}
    read = captions.in_view(samples, _ATTRIBUTES)
    for _, labels in tracked(
        read, "read", captions.name, len(samples), listener, cancel
    ):
        found |= findings([label for label in labels if label.get("caption")])
    quartiles = None
    if options.similarity:
        chosen = options.model if model is None else model
        cosines: dict[str, float] = {}
        for fit in fits(
            captions,
            samples,
            model=chosen,
            device=options.device,
            listener=listener,
            cancel=cancel,
        ):
            cosines[fit.id] = fit.cosine
            if fit.beaten is not None and fit.id in found:
                why = f"{fit.beaten:.0%} of other captions fit the region better"
                found[fit.id].append(CheckFinding(SIMILARITY, fit.beaten, why))
        captions.write(ATTRIBUTE, cosines, fo.FloatField)
        if cosines:
            quartiles = tuple(np.percentile([*cosines.values()], (25, 50, 75)).tolist())
    failed = {i: [f for f in own if f.failed] for i, own in found.items()}
    _write(captions, found, failed, checks)
    counts = Counter(f.check for own in failed.values() for f in own)
    return CheckSummary(
        captions=len(found),
        failed=sum(map(bool, failed.values())),
        by_check={check: counts[check] for check in checks},
        views={
            check: name
            for check in checks
            if (name := _save_view(captions, check, counts[check])) is not None
        },
        similarity=quartiles,
    )


def findings(labels: Sequence[Document]) -> dict[str, list[CheckFinding]]:
    """Checks the captions of one video or image.

    Args:
        labels: Labels as they lie in the database, each with a ``caption``.

    Returns:
        The findings by label id.
    """
    statements = [Statement.of(label) for label in labels]
    found = {
        own.id: list(_alone(own, label))
        for own, label in zip(statements, labels, strict=True)
    }
    for check, pairs in (
        ("consistency", contradictions(statements)),
        ("uniqueness", indistinct(statements)),
    ):
        for label_id, score, why in pairs:
            found[label_id].append(CheckFinding(check, score, why))
    return found


def _alone(own: Statement, label: Document) -> Iterator[CheckFinding]:
    """Checks a caption by its text and its region's measurements."""
    names = label.get("attributes") or ()
    scores = label.get("attribute_scores") or ()
    strong = [
        name.removeprefix("color:")
        for name, score in zip(names, scores, strict=False)
        if name.startswith("color:") and score >= _STRONG_COLOR
    ]
    color = color_conflict(own.facets, own.color, strong)
    if color is not None:
        colors = " and ".join(own.facets.subject_colors)
        yield CheckFinding("color", color, f"says {colors}, measured {own.color}")
    motion = motion_conflict(own.caption, own.direction, label.get("speed"))
    if motion is not None:
        yield CheckFinding(
            "motion", motion, f"says another way or rest, measured {own.direction}"
        )
    yield CheckFinding("repetition", repetition(own.caption), "says things again")
    yield CheckFinding("truncation", truncation(own.caption), "stops in the middle")


def _write(
    captions: CaptionField,
    found: dict[str, list[CheckFinding]],
    failed: dict[str, list[CheckFinding]],
    checks: Sequence[str],
) -> None:
    def worst(own: Iterable[CheckFinding], default: float | None) -> float | None:
        return max((f.score for f in own), default=default)

    for check in checks:
        scores = {
            label_id: worst((f for f in own if f.check == check), None)
            for label_id, own in found.items()
        }
        captions.write(f"check_{check}", scores, fo.FloatField)
    scores = {i: worst(own, 0.0) for i, own in found.items()}
    captions.write("check_score", scores, fo.FloatField)
    names = {i: sorted({f.check for f in own}) for i, own in failed.items()}
    captions.write("checks", names, fo.ListField, fo.StringField)
    why = {i: "; ".join(f.why for f in own) or None for i, own in failed.items()}
    captions.write("check_notes", why, fo.StringField)


def _save_view(captions: CaptionField, check: str, failed: int) -> str | None:
    """Saves the view of a check's captions; an empty one goes."""
    name, dataset = f"{captions.name}: check {check}", captions.dataset
    if not failed:
        if dataset.has_saved_view(name):
            dataset.delete_saved_view(name)
        return None
    view = dataset.filter_labels(captions.name, F("checks").contains(check))
    dataset.save_view(name, view, overwrite=True)
    return name
