"""Patch-ioner as a captioner of tracks, with one backbone pass for a whole frame."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.captioning.base import CaptionerInfo, EmbeddingSpace
from fiftyone_regioncap.captioning.checking import clip_problem
from fiftyone_regioncap.captioning.patchioner.aggregation import (
    MEAN,
    Compat,
    MaskRegion,
    Region,
    Weighting,
)
from fiftyone_regioncap.captioning.patchioner.checkpoint import (
    DEFAULT_REPOSITORY,
    Checkpoint,
)
from fiftyone_regioncap.captioning.patchioner.language import Description
from fiftyone_regioncap.captioning.patchioner.model import Patchioner, embed_regions
from fiftyone_regioncap.captioning.patchioner.text_encoder import PatchionerTexts
from fiftyone_regioncap.captioning.patchioner.vision import Backbone, FrameFeatures
from fiftyone_regioncap.core.errors import BackendError, PromptError
from fiftyone_regioncap.core.types import Caption, Frame, RegionClip

LICENSE = "LicenseRef-Patchioner-unstated"
"""The authors state no license of code or weights; see ``docs/patchioner.md``."""


class FeatureCache:
    """The features of the frames seen last, by the identity of their arrays.

    Clips of one video share their frames' arrays, so that a frame is encoded once for
    all objects on it, also over several batches. Arrays are held weakly, so that one
    that takes the address of another is not mistaken for it.
    """

    def __init__(self, backbone: Backbone, size: int = 32) -> None:
        """Keeps the features of ``size`` frames (4 MB each at the published size)."""
        self._backbone = backbone
        self._size = size
        self._kept: OrderedDict[int, tuple[weakref.ref[Frame], FrameFeatures]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def encode(self, frames: Sequence[Frame]) -> Iterator[FrameFeatures]:
        """Features of frames, in order; at most ``size`` are computed ahead."""
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
class _Look:
    """A clip's region on one of its frames.

    Attributes:
        clip: the clip's place in the batch.
        region: the mask.
        visibility: how much the frame counts in the clip's mean.
    """

    clip: int
    region: Region
    visibility: float


@dataclass
class _Means:
    """Embeddings of clips as weighted sums over their frames."""

    sums: dict[int, Tensor] = field(default_factory=dict)
    totals: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    def add(self, look: _Look, embedding: Tensor) -> None:
        weighted = embedding * look.visibility
        if look.clip in self.sums:
            self.sums[look.clip] += weighted
            self.totals[look.clip] += look.visibility
        else:
            self.sums[look.clip] = weighted
            self.totals[look.clip] = look.visibility

    def directions(self) -> dict[int, NDArray[np.float32]]:
        """The means at length 1, by clip."""
        if not self.sums:
            return {}
        rows = torch.nn.functional.normalize(torch.stack([*self.sums.values()]), dim=1)
        return dict(zip(self.sums, rows.float().cpu().numpy(), strict=True))


class PatchionerCaptioner:
    """Describes tracks by the mean of their patches over frames.

    Attributes:
        model: backbone and language part.
    """

    def __init__(
        self,
        model: Patchioner,
        *,
        name: str = "patchioner",
        revision: str = "unknown",
        checkpoint: Checkpoint | None = None,
        weighting: Weighting = MEAN,
        rule: Literal["coverage", "index"] = "coverage",
        frames: int = 8,
        cached_frames: int = 32,
        embeddings: bool = True,
    ) -> None:
        """Takes a loaded model; see :meth:`from_pretrained`.

        Args:
            model: backbone and language part.
            name: of the weights.
            revision: of the weights.
            checkpoint: where the text tower is found when text is embedded.
            weighting: of the patches under a mask.
            rule: how masks weight patches, see :class:`~.aggregation.MaskRegion`.
            frames: of a clip that it likes to see.
            cached_frames: whose features are kept between batches.
            embeddings: whether captions come with the embeddings of their regions; they
                do only with a checkpoint, which says what space they are of.
        """
        self.model = model
        self._name = name
        self._revision = revision
        self._checkpoint = checkpoint
        self._weighting = weighting
        self._rule: Literal["coverage", "index"] = rule
        self._frames = frames
        self._features = FeatureCache(model.backbone, cached_frames)
        self._texts: PatchionerTexts | None = None
        self._space: EmbeddingSpace | None = None
        if checkpoint is not None:
            self._texts = PatchionerTexts(checkpoint, model.backbone.device)
            self._space = checkpoint.space if embeddings else None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = DEFAULT_REPOSITORY,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        compat: Compat | None = None,
        index: bool | None = None,
        weighting: Literal["mean", "gaussian", "attention"] = "mean",
        variance: float = 1.0,
        rule: Literal["coverage", "index"] = "coverage",
        frames: int = 8,
        cached_frames: int = 32,
        embeddings: bool = True,
    ) -> PatchionerCaptioner:
        """Loads a checkpoint.

        Args:
            source: a folder with ``config.yaml`` and the files it names, or a hub
                repository.
            device: None takes CUDA where there is one.
            dtype: of backbone and decoder, or its name; None is bfloat16 on CUDA and
                float32 elsewhere.
            config: values that replace those of ``config.yaml``; see
                :class:`~.checkpoint.PatchionerConfig`.
            compat: short for a value of ``config``.
            index: short for a value of ``config``.
            weighting: of the patches under a mask.
            variance: of the Gaussian weighting.
            rule: how masks weight patches.
            frames: of a clip that it likes to see.
            cached_frames: whose features are kept between batches.
            embeddings: whether captions come with the embeddings of their regions.

        Raises:
            WeightsError: when a file is missing, corrupt or of another model.
            BackendError: when the checkpoint's backbone is not supported.
        """
        chosen = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        short = {"compat": compat, "index": index}
        given = {name: value for name, value in short.items() if value is not None}
        checkpoint = Checkpoint.open(source, {**(config or {}), **given})
        return cls(
            checkpoint.load(device, chosen),
            name=checkpoint.name,
            revision=checkpoint.revision,
            checkpoint=checkpoint,
            weighting=Weighting(weighting, variance),
            rule=rule,
            frames=frames,
            cached_frames=cached_frames,
            embeddings=embeddings,
        )

    @property
    def info(self) -> CaptionerInfo:
        """Many clips at once: what is on a frame costs one pass together."""
        return CaptionerInfo(
            name="patchioner",
            model=self._name,
            revision=self._revision,
            license=LICENSE,
            frames=self._frames,
            batch_size=64,
            space=self._space,
        )

    @property
    def space(self) -> EmbeddingSpace:
        """Where :meth:`embed` places regions.

        Raises:
            BackendError: when the captioner was made without a checkpoint.
        """
        return self._encoder().space

    @property
    def text_fingerprint(self) -> str:
        """Of the text tower and the projection.

        Raises:
            BackendError: when the captioner was made without a checkpoint.
        """
        return self._encoder().text_fingerprint

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order; see :meth:`~.base.Captioner.caption`.

        Raises:
            BackendError: when a prompt is given; the model takes none.
        """
        if prompt is not None:
            raise BackendError("the captioner patchioner takes no prompt; leave it out")
        means = self._means(clips)
        places = sorted(means.sums)
        described: dict[int, Description] = {}
        if places:
            embeddings = torch.stack([means.sums[p] / means.totals[p] for p in places])
            answers = self.model.language.describe(embeddings)
            described = dict(zip(places, answers, strict=True))
        looks = {} if self._space is None else means.directions()
        return [
            replace(
                caption_of(described[place], clip.label), embedding=looks.get(place)
            )
            if place in described
            else Caption(error=means.errors[place])
            for place, clip in enumerate(clips)
        ]

    def embed(self, clips: Sequence[RegionClip]) -> NDArray[np.float32]:
        """Places clips in the backbone's space.

        Args:
            clips: as for :meth:`caption`.

        Returns:
            float32 (N, D), unit rows; NaN for clips that have no caption either.
        """
        means = self._means(clips)
        rows = np.full((len(clips), self.model.backbone.width), np.nan, np.float32)
        for place, direction in means.directions().items():
            rows[place] = direction
        return rows

    def embed_text(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> NDArray[np.float32]:
        """Places texts in the space of :meth:`embed`, through Talk2DINO.

        The text tower is loaded at the first call.

        Args:
            texts: any number.
            truncate: whether to cut those of more than 77 tokens.

        Returns:
            float32 (N, D), unit rows.

        Raises:
            PromptError: when a text has more than 77 tokens.
            WeightsError: when the projection or the text tower is not there.
            BackendError: when the captioner was made without a checkpoint.
        """
        return self._encoder().embed_text(texts, truncate=truncate)

    def _encoder(self) -> PatchionerTexts:
        if self._texts is None:
            raise BackendError(
                "this captioner has no text tower; load it by from_pretrained"
            )
        return self._texts

    def features(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        """The features of frames, from the cache where they are in it."""
        return list(self._features.encode(frames))

    def _means(self, clips: Sequence[RegionClip]) -> _Means:
        means = _Means()
        by_frame: dict[int, list[_Look]] = {}
        frames: dict[int, Frame] = {}
        for place, clip in enumerate(clips):
            try:
                looks = list(self._looks(place, clip))
            except PromptError as error:
                means.errors[place] = str(error)
                continue
            for frame, look in looks:
                frames[id(frame)] = frame
                by_frame.setdefault(id(frame), []).append(look)
        unique = list(frames.values())
        for frame, features in zip(unique, self._features.encode(unique), strict=True):
            self._add(means, features, by_frame[id(frame)])
        return means

    def _add(
        self, means: _Means, features: FrameFeatures, looks: Sequence[_Look]
    ) -> None:
        """Adds what is on one frame; a bad region leaves the others alone."""
        regions = [look.region for look in looks]
        compat = self.model.compat
        try:
            rows = embed_regions(features, regions, self._weighting, compat=compat)
        except PromptError as error:
            if len(looks) == 1:
                means.errors[looks[0].clip] = str(error)
                return
            for look in looks:
                self._add(means, features, [look])
            return
        for look, row in zip(looks, rows, strict=True):
            means.add(look, row)

    def _looks(self, place: int, clip: RegionClip) -> Iterator[tuple[Frame, _Look]]:
        """A clip's visible frames.

        Raises:
            PromptError: when a frame is no image, a mask is of another size, or no
                mask has a pixel.
        """
        problem = clip_problem(clip)
        if problem is not None:
            raise PromptError(problem)
        scores = _scores(clip)
        for index, (frame, mask) in enumerate(
            zip(clip.frames, clip.masks, strict=True)
        ):
            area = int(np.count_nonzero(mask))
            if area == 0:
                continue
            # Small glimpses tell less of an object; lost tracks tell of something else.
            visibility = area / mask.size * scores.get(_frame_number(clip, index), 1.0)
            region = MaskRegion(mask, self._rule)
            yield frame, _Look(place, region, max(visibility, 1e-9))


def _frame_number(clip: RegionClip, index: int) -> int:
    """The video's frame number, 0-based, of a clip's frame."""
    if index < len(clip.frame_indices):
        return clip.frame_indices[index]
    return index


def _scores(clip: RegionClip) -> dict[int, float]:
    """The track's scores by frame; none for images."""
    if clip.track is None:
        return {}
    frames = clip.track.frames.tolist()
    return dict(zip(frames, clip.track.scores.tolist(), strict=True))


def tidy(text: str) -> str:
    """Removes the spaces that tokenization leaves around punctuation.

    ``"a dog 's ball , on grass . "`` becomes ``"a dog's ball, on grass."``.
    """
    words = " ".join(text.split())
    for mark in (".", ",", "!", "?", ":", ";", "'s", "n't"):
        words = words.replace(f" {mark}", mark)
    return words


def caption_of(description: Description, label: str | None) -> Caption:
    """A description as other rooms read it.

    Args:
        description: of a region.
        label: a short name for what is there, when known.
    """
    if description.text is None:
        return Caption(
            error="the decoder wrote a token outside CLIP's vocabulary; "
            "use compat='fixed'"
        )
    return Caption(
        text=tidy(description.text),
        label=label,
        confidence=description.confidence,
        min_confidence=description.min_confidence,
        tokens=description.tokens,
    )
