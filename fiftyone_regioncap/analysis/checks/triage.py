"""Sorts captions by a score into those to keep, to review and to drop."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco

from fiftyone_regioncap.analysis.checks.similarity import ATTRIBUTE as SIMILARITY
from fiftyone_regioncap.analysis.options import TriageOptions
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.core.progress import ProgressListener, tracked
from fiftyone_regioncap.dataset.caption_fields import CaptionField

ATTRIBUTE = "triage"
"""Attribute of the labels: ``keep``, ``review`` or ``drop``."""

_GOOD = ("accepted",)
_BAD = ("edited", "rejected")


@dataclass(frozen=True)
class TriageSummary:
    """Counts how captions were sorted.

    Attributes:
        counts: Number of captions by group: ``keep``, ``review`` and ``drop``.
        reviewed: Number of those that a person has accepted, edited or rejected.
        precision: Share of the reviewed ones in ``keep`` that were accepted as they
            are; None when none was reviewed.
        lost: Share of the reviewed ones in ``drop`` that were accepted all the same;
            None when none was reviewed.
    """

    counts: dict[str, int]
    reviewed: dict[str, int]
    precision: float | None
    lost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Returns a few lines for people, as Markdown."""
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
    options: TriageOptions = TriageOptions(),  # noqa: B008
    *,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> TriageSummary:
    """Sorts captions into those to keep, to drop, and to send to review.

    Captions without a score go to review.

    Args:
        samples: A dataset or a view.
        options: The score to sort by, such as ``confidence``, or
            ``image_text_similarity``, which :func:`~.run.check_captions` writes.
        listener: Called with progress events.
        cancel: Set it to stop before the next sample.

    Raises:
        FieldError: If the field or the attribute is absent, or ``drop`` is over
            ``keep``.
    """
    score, keep, drop = options.score, options.keep, options.drop
    captions = CaptionField.of(samples, options.captions)
    if drop > keep:
        raise FieldError(f"drop={drop} is over keep={keep}; no caption would be left")
    if not captions.dataset.has_field(f"{captions.labels}.{score}"):
        hint = "; check_captions writes it, with similarity=True"
        raise FieldError(
            f"the labels of {captions.name} have no attribute {score!r}"
            + (hint if score == SIMILARITY else "")
        )
    groups: dict[str, str] = {}
    reviewed: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    read = captions.in_view(samples, (score, "review"))
    for _, labels in tracked(
        read, "read", captions.name, len(samples), listener, cancel
    ):
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
