"""Keep, drop or look at: sorts captions by a score, and says how good that is."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco

from fiftyone_regioncap.analysis.checks.similarity import ATTRIBUTE as SIMILARITY
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset.caption_fields import CaptionField

ATTRIBUTE = "triage"
"""Attribute of the labels: ``keep``, ``review`` or ``drop``."""

_GOOD = ("accepted",)
_BAD = ("edited", "rejected")


@dataclass(frozen=True)
class TriageSummary:
    """How captions were sorted.

    Attributes:
        counts: captions by ``keep``, ``review`` and ``drop``.
        reviewed: captions by group that a person has accepted, edited or rejected.
        precision: share of the reviewed ones in ``keep`` that were accepted as they
            are; None when none was reviewed.
        lost: share of the reviewed ones in ``drop`` that were accepted all the same;
            None when none was reviewed.
    """

    counts: dict[str, int]
    reviewed: dict[str, int]
    precision: float | None
    lost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A few lines for people."""
        lines = [
            f"- **{count}** {group} ({self.reviewed[group]} of them reviewed)"
            for group, count in self.counts.items()
        ]
        said = (
            (self.precision, "of the reviewed ones in keep were accepted as they are"),
            (self.lost, "of the reviewed ones in drop were accepted all the same"),
        )
        lines += [f"- {share:.1%} {what}" for share, what in said if share is not None]
        if self.precision is None:
            lines.append("- how good this is, nobody knows before some are reviewed")
        return "\n".join(lines)


def triage(
    samples: foco.SampleCollection,
    field: str = "captions",
    *,
    score: str = "confidence",
    keep: float = 0.8,
    drop: float = 0.3,
) -> TriageSummary:
    """Sorts captions into those to keep, to drop, and to send to review.

    Args:
        samples: a dataset or a view.
        field: of the captions.
        score: attribute of the labels, larger for better captions, such as
            ``confidence``, or ``image_text_similarity``, which
            :func:`~.run.check_captions` writes.
        keep: score from which captions are kept.
        drop: score below which they are dropped; those without one go to review.

    Raises:
        FieldError: when the field or the attribute is absent, or ``drop`` is over
            ``keep``.
    """
    captions = CaptionField.of(samples, field)
    if drop > keep:
        raise FieldError(f"drop={drop} is over keep={keep}; no caption would be left")
    if not captions.dataset.has_field(f"{captions.labels}.{score}"):
        hint = "; check_captions writes it, with similarity=True"
        raise FieldError(
            f"the labels of {field} have no attribute {score!r}"
            + (hint if score == SIMILARITY else "")
        )
    groups: dict[str, str] = {}
    reviewed: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for _, labels in captions.in_view(samples, (score, "review")):
        for label in labels:
            value = label.get(score)
            group = "review"
            if value is not None and value >= keep:
                group = "keep"
            elif value is not None and value < drop:
                group = "drop"
            groups[str(label["_id"])] = group
            reviewed[group] += label.get("review") in (*_GOOD, *_BAD)
            accepted[group] += label.get("review") in _GOOD
    captions.write(ATTRIBUTE, groups, fo.StringField)
    counts = Counter(groups.values())
    shares = {
        group: accepted[group] / reviewed[group] if reviewed[group] else None
        for group in ("keep", "drop")
    }
    return TriageSummary(
        counts={group: counts[group] for group in ("keep", "review", "drop")},
        reviewed={group: reviewed[group] for group in ("keep", "review", "drop")},
        precision=shares["keep"],
        lost=shares["drop"],
    )
