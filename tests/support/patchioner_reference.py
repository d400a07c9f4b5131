"""The published model's own call: same requests, same answers, same order.

For comparing with published numbers. What the reference changes in place while it
answers, and its unusual scales, are repeated here and nowhere else needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fiftyone_regioncap.captioning.patchioner.aggregation import (
    MEAN,
    AttentionMap,
    Weighting,
    box_set_weights,
    box_weights,
    point_counts,
    whole_weights,
)
from fiftyone_regioncap.captioning.patchioner.language import (
    DecapLanguage,
    Description,
    Language,
    ViecapLanguage,
)
from fiftyone_regioncap.captioning.patchioner.vision import FrameFeatures

BOXES_AT_ONCE = 4
"""Boxes that the reference captions together; ViECap's padding depends on it."""


@dataclass(frozen=True)
class Request:
    """Arguments of one call; the names are the reference's.

    Attributes:
        get_cls_capt: The image token.
        get_avg_self_attn_capt: The attention-weighted image.
        get_avg_patch_capt: The whole image under a Gaussian.
        gaussian_img_variance: Variance of that Gaussian; from 100 on the plain mean.
        get_attn_heads_capt: The image under each pseudo head's attention.
        get_patch_capts: Every patch.
        get_register_capts: The register tokens.
        bboxes: (x, y, width, height) in pixels of the network's input.
        get_controllable_capts: Describe all boxes together.
        gaussian_avg: Boxes under a Gaussian.
        gaussian_bbox_variance: Variance of that Gaussian.
        use_attn_map_for_bboxes: Boxes under the attention.
        traces: Points x, y as fractions of the frame, (N, 2) each.
        use_attention_tracing: Traces under the attention.
    """

    get_cls_capt: bool = True
    get_avg_self_attn_capt: bool = False
    get_avg_patch_capt: bool = False
    gaussian_img_variance: float = 1.0
    get_attn_heads_capt: bool = False
    get_patch_capts: bool = False
    get_register_capts: bool = False
    bboxes: Sequence[Sequence[float]] | None = None
    get_controllable_capts: bool = False
    gaussian_avg: bool = False
    gaussian_bbox_variance: float = 0.5
    use_attn_map_for_bboxes: bool = False
    traces: Sequence[np.ndarray] | None = None
    use_attention_tracing: bool = False


@dataclass
class Answers:
    """Captions that one call returned.

    Attributes:
        described: Descriptions by the reference's output names, for one image.
        embeddings: Every embedding in the order of evaluation, before normalization.
    """

    described: dict[str, list[Description]] = field(default_factory=dict)
    embeddings: list[Tensor] = field(default_factory=list)

    @property
    def texts(self) -> Mapping[str, list[str | None]]:
        """The captions by output name."""
        return {
            key: [description.text for description in rows]
            for key, rows in self.described.items()
        }


def forward(features: FrameFeatures, language: Language, request: Request) -> Answers:
    """Answers a request about one image as the reference does.

    Args:
        features: Features of the image.
        language: Language part with ``compat="reference"``.
        request: The request.

    Raises:
        PromptError: Where the reference would go on with numbers that are none: a box
            outside, a set without boxes.
    """
    grid = features.grid
    patches = features.patches.clone()
    answers = Answers()
    attention = None
    if features.attention is not None:
        attention = AttentionMap(features.attention, "reference")

    def answer(key: str, embeddings: Tensor, at_once: int | None = None) -> None:
        answers.embeddings.append(embeddings.clone())
        rows = answers.described.setdefault(key, [])
        for chunk in embeddings.split(at_once or max(len(embeddings), 1)):
            rows += language.describe(chunk)

    def pooled(weights: Sequence[np.ndarray]) -> Tensor:
        stacked = torch.from_numpy(np.stack(weights)).flatten(1).to(patches)
        return stacked @ patches

    if request.get_cls_capt and features.cls is not None:
        answer("cls_capt", features.cls[None])
    if request.get_avg_self_attn_capt:
        weights = whole_weights(grid, Weighting("attention"), attention)
        answer("avg_self_attn_capt", pooled([weights / len(patches)]))
    if request.get_avg_patch_capt:
        weighting = Weighting("gaussian", request.gaussian_img_variance)
        answer("avg_patch_capt", pooled([whole_weights(grid, weighting)]))
    if request.get_attn_heads_capt and features.head_attention is not None:
        heads = features.head_attention @ patches / len(patches)
        answer("attn_heads_capts", heads)
    if request.get_patch_capts:
        answer("patch_tokens_capts", patches)
        if _normalizes_in_place(language):
            patches = torch.nn.functional.normalize(patches, dim=1)
    if request.get_register_capts and features.registers is not None:
        answer("register_capts", features.registers)
    if request.bboxes is not None:
        weighting = _box_weighting(request)
        if request.get_controllable_capts:
            weights = box_set_weights(request.bboxes, grid, weighting, attention)
            answer("set_controllable_capts", pooled([weights]))
        else:
            maps = [box_weights(b, grid, weighting, attention) for b in request.bboxes]
            answer("bbox_capts", pooled(maps), BOXES_AT_ONCE)
    if request.traces is not None:
        counts = [point_counts(trace, grid) for trace in request.traces]
        if request.use_attention_tracing and attention is not None:
            counts = [count * attention.weights for count in counts]
        answer("trace_capts", pooled(counts) / len(patches))
    return answers


def _box_weighting(request: Request) -> Weighting:
    if request.use_attn_map_for_bboxes:
        return Weighting("attention")
    if request.gaussian_avg:
        return Weighting("gaussian", request.gaussian_bbox_variance)
    return MEAN


def _normalizes_in_place(language: Language) -> bool:
    """Returns whether captioning leaves the patches with length 1 afterwards."""
    if isinstance(language, DecapLanguage):
        return language.memory is not None
    return isinstance(language, ViecapLanguage)
