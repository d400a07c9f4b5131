"""CLIP-S, PAC-S and RefPAC-S: captions scored by how close they are to pictures.

CLIP-S (arXiv 2104.08718) is 2.5 times the cosine of picture and text, PAC-S (arXiv
2303.12112) 2 times with weights of its own; below 0 counts as 0. RefPAC-S is here what
Patch-ioner's code computes: the cosine of the caption and the nearest reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.evaluation.benchmarks.base import (
    Answer,
    Item,
    Scores,
    Tools,
)
from fiftyone_regioncap.evaluation.benchmarks.media import open_image
from fiftyone_regioncap.evaluation.benchmarks.metrics import Means
from fiftyone_regioncap.models.devices import choose_device

PREFIX = "A photo depicts "
WEIGHTS = {"clip": 2.5, "pac": 2.0}
"""What a cosine is multiplied by, by the name of the model."""

_RED = (255, 0, 0)
_POINT_RADIUS, _POINT_ALPHA, _LINE = 3, 122, 2
_BATCH = 32


class ClipScorer:
    """A CLIP model that embeds pictures and captions.

    Args:
        weights: Folder of a ``transformers`` CLIP model with its processor.
    """

    def __init__(self, weights: str | Path) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self._device = choose_device()
        self._model = CLIPModel.from_pretrained(weights).to(self._device).eval()
        self._process = CLIPProcessor.from_pretrained(weights)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds captions as unit vectors, cut off after 77 tokens."""
        inputs = self._process(
            text=[PREFIX + text for text in texts],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=77,
        ).to(self._device)
        return _unit(self._model.get_text_features(**inputs))

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Frame]) -> NDArray[np.float32]:
        """Embeds pictures as unit vectors."""
        inputs = self._process(images=list(pictures), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device)
        return _unit(self._model.get_image_features(pixel_values=pixels))


def _unit(found: object) -> NDArray[np.float32]:
    features = found if isinstance(found, torch.Tensor) else found.pooler_output  # type: ignore[attr-defined]
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def add_clip_scores(scores: Scores, answers: Sequence[Answer], tools: Tools) -> Scores:
    """Adds ``clip_s``, ``pac_s`` and ``refpac_text`` where their models were named.

    Args:
        scores: Scores of other metrics.
        answers: The answers.
        tools: Names the models ``clip`` and ``pac``, and the folder of the pictures.
    """
    overall = dict(scores.overall)
    for name, weight in WEIGHTS.items():
        if name not in tools.models:
            continue
        scorer = ClipScorer(tools.models[name])
        means = Means()
        for start in range(0, len(answers), _BATCH):
            batch = answers[start : start + _BATCH]
            said = scorer.texts([one.text for one in batch])
            shown = scorer.pictures([*_shown(batch, tools)])
            for one, text, picture in zip(batch, said, shown, strict=True):
                means.add(**{f"{name}_s": weight * max(0.0, float(text @ picture))})
                if name == "pac":
                    near = scorer.texts(one.item.references) @ text
                    means.add(refpac_text=float(near.max()))
        overall.update(means.result())
    missing = [name for name in WEIGHTS if name not in tools.models]
    notes = scores.notes
    if missing:
        note = f"left out: the weights of {' and '.join(missing)} weren't named"
        notes = (*notes, note)
    return replace(scores, overall=overall, notes=notes)


def _shown(answers: Sequence[Answer], tools: Tools) -> Iterator[Frame]:
    folder = tools.folder if tools.media is None else tools.media
    for one in answers:
        yield draw(open_image(folder, one.item.media), one.item)


def draw(picture: Frame, item: Item) -> Frame:
    """Draws the region of an item into its picture, as the paper's code does.

    Boxes are red, 2 pixels wide; points are red discs of radius 3, half transparent.
    """
    region = item.regions.get(0)
    if region is None or not (region.boxes or region.points):
        return picture
    shown = Image.fromarray(picture).convert("RGBA")
    layer = Image.new("RGBA", shown.size)
    pen = ImageDraw.Draw(layer)
    for box in region.boxes:
        pen.rectangle(box, outline=(*_RED, 255), width=_LINE)
    for x, y in region.points or ():
        x, y, r = x * shown.width, y * shown.height, _POINT_RADIUS
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(*_RED, _POINT_ALPHA))
    return np.asarray(Image.alpha_composite(shown, layer).convert("RGB"))
