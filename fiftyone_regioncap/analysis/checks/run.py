"""Checks the captions of a dataset, and writes what was found onto them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco
import numpy as np
from fiftyone import ViewField as F

from fiftyone_regioncap.analysis.checks.facts import color_conflict, motion_conflict
from fiftyone_regioncap.analysis.checks.similarity import ATTRIBUTE, fits
from fiftyone_regioncap.analysis.checks.texts import repetition, truncation
from fiftyone_regioncap.analysis.checks.tracks import Said, contradictions, indistinct
from fiftyone_regioncap.captioning.base import TextEncoder
from fiftyone_regioncap.core.markdown import code
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.store import Document

CHECKS = ("color", "motion", "repetition", "truncation", "consistency", "uniqueness")
"""What is looked for."""

SIMILARITY = "similarity"
"""What is looked for too where it is asked for."""

FROM = {"repetition": 0.3}
"""Score from which a check counts as failed, where it isn't :data:`DEFAULT_FROM`."""

DEFAULT_FROM = 0.7

_ATTRIBUTES = (
    *("caption", "label", "support", "index", "attributes", "attribute_scores"),
    *("dominant_color", "direction", "speed", "mean_area", "error"),
)
_STRONG_COLOR = 0.2


@dataclass(frozen=True)
class Finding:
    """What a check found in a caption.

    Attributes:
        check: one of :data:`CHECKS`, or :data:`SIMILARITY`.
        score: in [0, 1]; 1 is surely bad.
        why: for people.
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
    """What was found.

    Attributes:
        captions: how many were checked.
        failed: how many failed at least one check.
        by_check: how many failed each check.
        views: names of the saved views, by check.
        similarity: quartiles of the cosines of captions and regions, to choose
            thresholds by; None where they were not compared.
    """

    captions: int
    failed: int
    by_check: dict[str, int]
    views: dict[str, str]
    similarity: tuple[float, float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A few lines for people."""
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
    field: str = "captions",
    *,
    similarity: bool = False,
    model: str | TextEncoder | None = None,
    device: str | None = None,
) -> CheckSummary:
    """Looks for captions that are probably bad.

    Labels get ``check_<check>``, a score in [0, 1] where 1 is surely bad and None means
    that nothing could be compared; ``check_score``, the worst of them; ``checks``, the
    names of the checks that failed; and ``check_notes``, why. A view of the captions
    that failed is saved for each check.

    With ``similarity``, captions are also compared with how their regions look, as far
    as regions were embedded: labels get ``image_text_similarity`` too, the cosine,
    which is larger for better captions and of use to :func:`~.triage.triage`.

    Args:
        samples: a dataset or a view; captions are compared with those that are in it.
        field: of the captions.
        similarity: whether to compare captions with their regions.
        model: for that: a folder, a hub id, or one of your own; None for the one that
            most regions were embedded by.
        device: for that; None for the best there is.

    Raises:
        FieldError: when the field is absent or can't have captions, or holds no region
            embeddings and they are asked for.
        BackendError: when the model isn't at hand, or isn't the one that embedded the
            regions.
    """
    captions = CaptionField.of(samples, field)
    checks = (*CHECKS, SIMILARITY) if similarity else CHECKS
    found: dict[str, list[Finding]] = {}
    for _, labels in captions.in_view(samples, _ATTRIBUTES):
        found |= findings([label for label in labels if label.get("caption")])
    cosines: dict[str, float] = {}
    if similarity:
        for fit in fits(captions, samples, model=model, device=device):
            cosines[fit.id] = fit.cosine
            if fit.beaten is not None and fit.id in found:
                why = f"{fit.beaten:.0%} of other captions fit the region better"
                found[fit.id].append(Finding(SIMILARITY, fit.beaten, why))
        captions.write(ATTRIBUTE, cosines, fo.FloatField)
    _write(captions, found, checks)
    failures = [f.check for own in found.values() for f in own if f.failed]
    counts = Counter(failures)
    return CheckSummary(
        captions=len(found),
        failed=sum(any(f.failed for f in own) for own in found.values()),
        by_check={check: counts[check] for check in checks},
        views={check: _save_view(captions, check) for check in checks},
        similarity=_quartiles([*cosines.values()]) if cosines else None,
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return low, middle, high


def findings(labels: Sequence[Document]) -> dict[str, list[Finding]]:
    """What is wrong with the captions of one video or image, by label id.

    Args:
        labels: as they lie in the database, each with a ``caption``.
    """
    found: dict[str, list[Finding]] = defaultdict(list)
    said = [Said.of(label) for label in labels]
    for one, label in zip(said, labels, strict=True):
        found[one.id] += _alone(one, label)
    for check, pairs in (
        ("consistency", contradictions(said)),
        ("uniqueness", indistinct(said)),
    ):
        for label_id, score, why in pairs:
            found[label_id].append(Finding(check, score, why))
    return dict(found)


def _alone(said: Said, label: Document) -> Iterator[Finding]:
    """What a caption's text and its region's measurements say."""
    names = label.get("attributes") or ()
    scores = label.get("attribute_scores") or ()
    strong = [
        name.removeprefix("color:")
        for name, score in zip(names, scores, strict=False)
        if name.startswith("color:") and score >= _STRONG_COLOR
    ]
    color = color_conflict(said.facets, said.color, strong)
    if color is not None:
        colors = " and ".join(said.facets.subject_colors)
        yield Finding("color", color, f"says {colors}, measured {said.color}")
    motion = motion_conflict(said.caption, said.direction, label.get("speed"))
    if motion is not None:
        yield Finding(
            "motion", motion, f"says another way or rest, measured {said.direction}"
        )
    yield Finding("repetition", repetition(said.caption), "says things again")
    yield Finding("truncation", truncation(said.caption), "stops in the middle")


def _write(
    captions: CaptionField, found: dict[str, list[Finding]], checks: Sequence[str]
) -> None:
    for check in checks:
        scores = {
            label_id: max((f.score for f in own if f.check == check), default=None)
            for label_id, own in found.items()
        }
        captions.write(f"check_{check}", scores, fo.FloatField)
    worst = {i: max((f.score for f in own), default=0.0) for i, own in found.items()}
    captions.write("check_score", worst, fo.FloatField)
    failed = {i: [f for f in own if f.failed] for i, own in found.items()}
    names = {i: sorted({f.check for f in own}) for i, own in failed.items()}
    captions.write("checks", names, fo.ListField, fo.StringField)
    why = {i: "; ".join(f.why for f in own) or None for i, own in failed.items()}
    captions.write("check_notes", why, fo.StringField)


def _save_view(captions: CaptionField, check: str) -> str:
    name = f"{captions.name}: check {check}"
    view = captions.dataset.filter_labels(captions.name, F("checks").contains(check))
    captions.dataset.save_view(name, view, overwrite=True)
    return name
