"""Patch-ioner as a captioner of tracks, with one backbone pass for a whole frame."""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.checking import check_clip
from fiftyone_regioncap.captioning.merging import track_scores
from fiftyone_regioncap.captioning.patchioner.aggregation import (
    MaskRegion,
    Region,
    Weighting,
)
from fiftyone_regioncap.captioning.patchioner.checkpoint import (
    DEFAULT_REPOSITORY,
    Checkpoint,
)
from fiftyone_regioncap.captioning.patchioner.configuration import PatchionerOptions
from fiftyone_regioncap.captioning.patchioner.language import Description
from fiftyone_regioncap.captioning.patchioner.model import Patchioner, embed_regions
from fiftyone_regioncap.captioning.patchioner.text_encoder import PatchionerTexts
from fiftyone_regioncap.captioning.patchioner.vision import Backbone, FrameFeatures
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Caption, Frame, RegionClip
from fiftyone_regioncap.models.devices import choose_device

LICENSE = "LicenseRef-Patchioner-unstated"
"""The authors state no license of code or weights; see ``docs/patchioner.md``."""


NOT_FINITE = (
    "the model's numbers for this region are NaN; check the weights, or choose "
    "dtype='float32'"
)
"""Error of a caption whose numbers mean nothing."""


class FeatureCache:
    """Features of the frames seen last, by the identity of their arrays.

    Clips of one video share their frames' arrays, so that a frame is encoded once for
    all objects on it, also over several batches. Arrays are held weakly, so that one
    that takes the address of another is not mistaken for it.

    Args:
        backbone: Encodes frames.
        size: Number of frames whose features are kept (4 MB each at the published
            size).
    """

    def __init__(self, backbone: Backbone, size: int = 32) -> None:
        self._backbone = backbone
        self._size = size
        self._kept: OrderedDict[int, tuple[weakref.ref[Frame], FrameFeatures]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def encode(self, frames: Sequence[Frame]) -> Iterator[FrameFeatures]:
        """Yields the features of frames, in order; at most ``size`` are computed ahead.

        Args:
            frames: Frames, uint8 (H, W, 3) RGB.
        """
        for start in range(0, len(frames), self._size):
            batch = frames[start : start + self._size]
            with self._lock:
                self._add([frame for frame in batch if self._find(frame) is None])
                found = [self._kept[id(frame)][1] for frame in batch]
            yield from found

    def _find(self, frame: Frame) -> FrameFeatures | None:
        entry = self._kept.get(id(frame))
        if entry is None or entry[0]() is not frame:
            return None
        self._kept.move_to_end(id(frame))
        return entry[1]

    def _add(self, frames: Sequence[Frame]) -> None:
        unique = list({id(frame): frame for frame in frames}.values())
        for frame, features in zip(unique, self._backbone.encode(unique), strict=True):
            self._kept[id(frame)] = weakref.ref(frame), features
            self._kept.move_to_end(id(frame))
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)


@dataclass(frozen=True)
class _FrameRegion:
    """A clip's region on one of its frames.

    Attributes:
        clip: Number of the clip in the batch.
        region: Mask of the region.
        visibility: Weight of the frame in the clip's mean.
    """

    clip: int
    region: Region
    visibility: float


@dataclass
class _ClipEmbeddings:
    """Embeddings of clips as weighted sums over their frames.

    Attributes:
        sums: Weighted sum of each clip's embeddings, by its number.
        totals: Sum of the weights.
        errors: Error messages of clips that have no embedding, by number.
    """

    sums: dict[int, Tensor] = field(default_factory=dict)
    totals: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    def add(self, one: _FrameRegion, embedding: Tensor) -> None:
        weighted = embedding * one.visibility
        known = self.sums.get(one.clip)
        self.sums[one.clip] = weighted if known is None else known + weighted
        self.totals[one.clip] = self.totals.get(one.clip, 0.0) + one.visibility

    def unit(self) -> dict[int, NDArray[np.float32]]:
        """Returns the means scaled to length 1, by clip."""
        if not self.sums:
            return {}
        rows = torch.nn.functional.normalize(torch.stack([*self.sums.values()]), dim=1)
        return dict(zip(self.sums, rows.float().cpu().numpy(), strict=True))


class PatchionerCaptioner(PatchionerTexts):
    """Describes tracks by the mean of their patches over frames.

    Args:
        model: Backbone and language part; see :meth:`from_pretrained`.
        options: Options of weighting and captioning.
        name: Name of the weights.
        checkpoint: Checkpoint with the text tower; None if texts cannot be embedded and
            captions come without the embeddings of their regions.

    Attributes:
        model: Backbone and language part.
        options: Options of weighting and captioning.
        weighting: Weighting of the patches of a region.
        info: Name, weights, license and needs.
    """

    def __init__(
        self,
        model: Patchioner,
        options: PatchionerOptions | None = None,
        *,
        name: str = "patchioner",
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(checkpoint, model.backbone.device)
        self.model = model
        self.options = options = options or PatchionerOptions()
        self._features = FeatureCache(model.backbone, options.cached_frames)
        self.weighting = Weighting(options.weighting, options.variance)
        embeds = checkpoint is not None and options.embeddings
        self.info = CaptionerInfo(
            name="patchioner",
            model=name if checkpoint is None else checkpoint.name,
            revision="unknown" if checkpoint is None else checkpoint.revision,
            license=LICENSE,
            frames=options.frames,
            # What is on a frame costs one pass together.
            batch_size=64,
            takes_prompt=False,
            space=self.space if embeds else None,
        )

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = DEFAULT_REPOSITORY,
        device: torch.device | str | None = None,
        options: PatchionerOptions | None = None,
    ) -> PatchionerCaptioner:
        """Loads a checkpoint.

        Args:
            weights: A folder with ``config.yaml`` and the files it names, or a hub
                repository.
            device: Device to run on; None for a GPU where there is one.
            options: Options of weighting and captioning, and values that replace those
                of ``config.yaml``.

        Raises:
            WeightsError: If a file is missing, corrupt or of another model.
            BackendError: If the checkpoint's backbone is not supported, or there is no
                such device.
        """
        options = options or PatchionerOptions()
        checkpoint = Checkpoint.open(weights, options.overrides)
        model = checkpoint.load(choose_device(device), options.dtype)
        return cls(model, options, checkpoint=checkpoint)

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order; see :meth:`~.base.Captioner.caption`.

        Raises:
            BackendError: If a prompt is given; the model takes none.
        """
        self.info.check_prompt(prompt)
        found = self._embed(clips)
        numbers = sorted(found.sums)
        described: dict[int, Description] = {}
        if numbers:
            means = torch.stack([found.sums[n] / found.totals[n] for n in numbers])
            answers = self.model.language.describe(means)
            described = dict(zip(numbers, answers, strict=True))
        embeddings = {} if self.info.space is None else found.unit()
        return [
            replace(
                caption_of(described[number], clip.label),
                embedding=embeddings.get(number),
            )
            if number in described
            else Caption(error=found.errors[number])
            for number, clip in enumerate(clips)
        ]

    def embed(self, clips: Sequence[RegionClip]) -> NDArray[np.float32]:
        """Embeds clips into the backbone's space.

        Args:
            clips: Clips, as for :meth:`caption`.

        Returns:
            Unit vectors, float32 (N, D); NaN for clips that have no caption either.
        """
        rows = np.full((len(clips), self.model.backbone.width), np.nan, np.float32)
        for number, vector in self._embed(clips).unit().items():
            rows[number] = vector
        return rows

    def features(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        """Returns the features of frames, from the cache where they are in it."""
        return list(self._features.encode(frames))

    def _embed(self, clips: Sequence[RegionClip]) -> _ClipEmbeddings:
        found = _ClipEmbeddings()
        by_frame: dict[int, list[_FrameRegion]] = {}
        frames: dict[int, Frame] = {}
        for number, clip in enumerate(clips):
            try:
                check_clip(clip)
            except PromptError as error:
                found.errors[number] = str(error)
                continue
            for frame, one in self._regions(number, clip):
                frames[id(frame)] = frame
                by_frame.setdefault(id(frame), []).append(one)
        unique = list(frames.values())
        for frame, features in zip(unique, self._features.encode(unique), strict=True):
            self._add(found, features, by_frame[id(frame)])
        return found

    def _add(
        self,
        found: _ClipEmbeddings,
        features: FrameFeatures,
        regions: Sequence[_FrameRegion],
    ) -> None:
        """Adds the regions of one frame; a bad one leaves the others alone."""
        try:
            rows = embed_regions(
                features,
                [one.region for one in regions],
                self.weighting,
                compat=self.model.compat,
            )
        except PromptError as error:
            if len(regions) == 1:
                found.errors[regions[0].clip] = str(error)
                return
            for one in regions:
                self._add(found, features, [one])
            return
        finite = rows.isfinite().all(dim=1).tolist()
        for one, row, sound in zip(regions, rows, finite, strict=True):
            if sound:
                found.add(one, row)
            else:
                found.errors[one.clip] = NOT_FINITE

    def _regions(
        self, number: int, clip: RegionClip
    ) -> Iterator[tuple[Frame, _FrameRegion]]:
        """Yields the visible frames of a clip."""
        scores = track_scores(clip)
        for frame, mask, score in zip(clip.frames, clip.masks, scores, strict=True):
            area = int(np.count_nonzero(mask))
            if area == 0:
                continue
            # Small glimpses tell less of an object; lost tracks tell of something else.
            visibility = max(area / mask.size * float(score), 1e-9)
            region = MaskRegion(mask, self.options.rule)
            yield frame, _FrameRegion(number, region, visibility)


def tidy(text: str) -> str:
    """Removes the spaces that tokenization leaves around punctuation.

    ``"a dog 's ball , on grass . "`` becomes ``"a dog's ball, on grass."``.
    """
    words = " ".join(text.split())
    for mark in (".", ",", "!", "?", ":", ";", "'s", "n't"):
        words = words.replace(f" {mark}", mark)
    return words


def caption_of(description: Description, label: str | None) -> Caption:
    """Converts a description of a region to a caption.

    Args:
        description: Description of a region.
        label: A short name for what is there, when known.
    """
    if description.text is None:
        return Caption(
            error="the decoder wrote a token outside CLIP's vocabulary; "
            "use compat='fixed'"
        )
    if not math.isfinite(description.confidence or 0.0):
        return Caption(error=NOT_FINITE)
    return Caption(
        text=tidy(description.text),
        label=label,
        confidence=description.confidence,
        min_confidence=description.min_confidence,
        tokens=description.tokens,
    )
