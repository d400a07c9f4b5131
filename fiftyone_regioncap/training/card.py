"""The model card of trained weights: what they are made of, and how good they are."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.captioning.trainable import Trainable
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.training.loop import Settings

if TYPE_CHECKING:
    from fiftyone_regioncap.training.run import TrainingSummary

CARD = "README.md"
RECORD = "training_record.json"
"""Names of the card and of the same as JSON."""


@dataclass(frozen=True)
class Provenance:
    """Where trained weights come from.

    Attributes:
        captioner: The captioner's name.
        base: Folder or hub id of the weights that training began with.
        revision: Commit of the hub, or hash, of these.
        license: Their license.
        consent: What the user agreed to; None where nothing was asked.
        dataset: Name of the dataset; None for captions of a file.
        version: Version of this package.
        commit: Its commit, where it runs from a checkout.
        settings: Everything that the training depends on.
        notes: What the recipe says of itself.
    """

    captioner: str
    base: str
    revision: str
    license: str
    consent: str | None
    dataset: str | None
    version: str
    commit: str | None
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        consent: str | None,
        settings: Settings,
        recipe: Trainable,
        dataset: str | None,
    ) -> Provenance:
        """Collects what is known of a training."""
        card = CAPTIONERS[spec.name]
        given = spec.weights is not None and spec.weights != card.weights
        inherited = f"{card.license}, if the base weights are the published ones"
        return cls(
            captioner=spec.name,
            base=settings.weights,
            revision=recipe.revision,
            license=inherited if given else card.license,
            consent=consent,
            dataset=dataset,
            version=__version__,
            commit=_commit(),
            settings=settings.flat(),
            notes=recipe.notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON."""
        return {**asdict(self), "notes": list(self.notes)}


def write_card(folder: Path, summary: TrainingSummary, provenance: Provenance) -> None:
    """Writes the card beside the weights."""
    record = {"provenance": provenance.to_dict(), "summary": summary.to_dict()}
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
    (folder / RECORD).write_text(text, encoding="utf-8")
    head = yaml.safe_dump(
        {
            "base_model": provenance.base,
            "license": "other",
            "license_name": provenance.license,
            "pipeline_tag": "image-to-text",
            "tags": ["region-captioning", provenance.captioner],
        },
        sort_keys=False,
    )
    rows = [
        f"| {step} | {name} | {value:.4f} |"
        for step, metrics in summary.fit.evaluations.items()
        for name, value in metrics.items()
        if name != "epoch"
    ]
    settings = [
        f"| {name} | `{value}` |" for name, value in provenance.settings.items()
    ]
    made_by = f"fiftyone-regioncap {provenance.version}"
    if provenance.commit:
        made_by += f" ({provenance.commit})"
    sections = [
        f"---\n{head}---",
        f"# {provenance.captioner}, trained on region captions",
        f"Base: {provenance.base} ({provenance.revision}). License of the base: "
        f"{provenance.license}. Made by {made_by}.",
        *([f"Consent: {provenance.consent}."] if provenance.consent else []),
        *provenance.notes,
        "## Data\n\n"
        f"{summary.trained} captions of {summary.videos[0]} videos or images"
        + (f" of the dataset {provenance.dataset}" if provenance.dataset else "")
        + f" were learned; {summary.held_out} of {summary.videos[1]} were held out.",
        "## Evaluation on what was held out\n\n"
        + (
            "| step | metric | value |\n|---|---|---:|\n" + "\n".join(rows)
            if rows
            else "Nothing was held out."
        )
        + f"\n\nThe weights are those of step {summary.fit.best_step}.",
        "## Settings\n\n| setting | value |\n|---|---|\n" + "\n".join(settings),
    ]
    (folder / CARD).unlink(missing_ok=True)  # it may be the base's own file
    (folder / CARD).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _commit() -> str | None:
    """Returns the commit of the checkout that this runs from; None without one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True
    )
    return done.stdout.strip() or None
