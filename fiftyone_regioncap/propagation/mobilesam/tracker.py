"""Follows objects from frame to frame over MobileSAM's embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.types import Frame, ObjectMask, Prompt, box_of_mask
from fiftyone_regioncap.propagation.competition import compete, drop_fragments
from fiftyone_regioncap.propagation.mobilesam.color import (
    cell_colors,
    color_agreement,
)
from fiftyone_regioncap.propagation.mobilesam.matching import (
    Memory,
    carry,
    cell_features,
    cell_shares,
    likeness,
    offset_penalty,
    similarity,
)
from fiftyone_regioncap.propagation.mobilesam.prompting import CERTAIN, prompted_logits
from fiftyone_regioncap.propagation.mobilesam.segmenter import (
    MASK_STRIDE,
    Grid,
    MobileSam,
    enlarge,
    half_is_fast,
)
from fiftyone_regioncap.propagation.mobilesam.tinyvit import CHANNELS, STRIDE

# Bhattacharyya's coefficients of an object's colors on two frames that say that it is
# another, or the same; and what is left of a score when they say it is another.
_COLORS_DIFFER = 0.7
_COLORS_AGREE = 0.95
_COLORLESS = 0.25


@dataclass(frozen=True)
class Settings:
    """How objects are followed.

    Attributes:
        side: longest side of the encoder's input in pixels, a multiple of 16. 1024 is
            what MobileSAM was trained at; 768 takes half the time.
        reduced_precision: whether to encode in bfloat16; None means where the processor
            has instructions for it, which halves the time again.
        recent: latest frames remembered.
        kept: older frames remembered, on which an object was surely seen; the latest
            that many.
        kept_every: frames between those.
        kept_score: least score of an object on them.
        remembered_score: a frame is remembered when an object has at least this score.
        window: distance over which cells match those of a recent frame, along each
            axis, as a share of the longest side. Prompted and kept frames match
            anywhere, so that objects come back wherever they do.
        recency: how much more alike cells of recent frames count. Objects change their
            pose, so how one looked just now says more than how it looked at first.
        neighbors: matches counted for each cell.
        temperature: of the softmax over them.
        color: how much of the likeness of two cells is that of their colors, in
            [0, 1]; the rest is that of MobileSAM's embeddings. About 0.4 helps where
            an object crosses others of other colors, or at a small side; it hurts
            among animals that are alike.
        fragment: parts smaller than this share of the largest are dropped.
        agreement: least IoU of the decoder's mask with the carried one to be trusted.
        visible: least score of a mask that is given out.
    """

    side: int = 768
    reduced_precision: bool | None = None
    recent: int = 4
    kept: int = 4
    kept_every: int = 5
    kept_score: float = 0.5
    remembered_score: float = 0.4
    window: float = 12 / 64
    recency: float = 0.03
    neighbors: int = 8
    temperature: float = 0.01
    color: float = 0.0
    fragment: float = 0.1
    agreement: float = 0.5
    visible: float = 0.1


class MobileSamTracker:
    """A :class:`~fiftyone_regioncap.propagation.stream.Tracker` of several objects."""

    def __init__(
        self, model: MobileSam, grid: Grid, settings: Settings, overlap: bool
    ) -> None:
        """Starts with nothing seen.

        Args:
            model: the segmenter.
            grid: of the video's frames at the settings' side.
            settings: how objects are followed.
            overlap: whether objects may share pixels.
        """
        self._model = model
        self._grid = grid
        self._settings = settings
        self._overlap = overlap
        rows, columns = grid.cells
        radius = round(settings.window * grid.side / STRIDE)
        # What to add to the likeness of recent frames' cells.
        near = offset_penalty(rows, columns, radius, model.device)
        self._bonus = settings.recency + near
        self._half = (
            settings.reduced_precision
            if settings.reduced_precision is not None
            else half_is_fast(model.device)
        )
        self._mean: Tensor | None = None
        self._ids: list[int] = []
        # Frames in these roles are remembered; one frame may have several.
        self._prompted: dict[int, list[int]] = {}
        self._kept: list[int] = []
        self._recent: list[int] = []
        self._memories: dict[int, Memory] = {}

    @torch.inference_mode()
    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Takes the next frame; see the protocol."""
        embedding = self._model.encode(frame, side=self._grid.side, half=self._half)
        if self._mean is None:
            self._mean = embedding.mean(dim=(1, 2))
        colors = cell_colors(frame, self._grid, self._model.device)
        features = cell_features(embedding, self._mean, colors)
        by_id: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_id.setdefault(prompt.object_id, []).append(prompt)
        self._ids += [object_id for object_id in by_id if object_id not in self._ids]
        alike = {
            known: similarity(features, memory.features, self._settings.color)
            for known, memory in self._memories.items()
        }

        logits = {
            object_id: prompted_logits(self._model, embedding, self._grid, given)
            for object_id, given in by_id.items()
        }
        others = [object_id for object_id in self._ids if object_id not in by_id]
        logits |= self._sharpen(self._carry(others, alike), embedding)
        claims = torch.stack([logits[object_id] for object_id in self._ids])
        claimed = claims.cpu().numpy()
        masks = claimed > 0 if self._overlap else compete(claimed)
        shares = cell_shares(torch.from_numpy(masks).to(claims).float(), self._grid)

        results, labels, scores = {}, {}, {}
        for object_id, mask, share in zip(self._ids, masks, shares, strict=True):
            score = 1.0
            if object_id not in by_id:
                score = self._score(object_id, alike, colors, share)
            visible = bool(mask.any()) and score >= self._settings.visible
            results[object_id] = ObjectMask(mask if visible else None, score)
            labels[object_id] = share if visible else torch.zeros_like(share)
            scores[object_id] = score
        self._remember(index, Memory(features, labels), scores, by_id.keys())
        return results

    def _carry(
        self, object_ids: Sequence[int], alike: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """Soft masks (rows, columns) of objects that were seen before."""
        groups: dict[tuple[tuple[int, bool], ...], list[int]] = {}
        for object_id in object_ids:
            groups.setdefault(self._known(object_id), []).append(object_id)
        soft: dict[int, Tensor] = {}
        for known, members in groups.items():
            carried = carry(
                [
                    alike[frame] if anywhere else alike[frame] + self._bonus
                    for frame, anywhere in known
                ],
                [
                    torch.stack([self._memories[frame].labels[k] for k in members])
                    for frame, _ in known
                ],
                neighbors=self._settings.neighbors,
                temperature=self._settings.temperature,
            )
            soft |= dict(zip(members, carried, strict=True))
        return soft

    def _known(self, object_id: int) -> tuple[tuple[int, bool], ...]:
        """The frames that tell of an object, and whether their cells match anywhere."""
        anywhere = {*self._prompted[object_id], *self._kept}
        return tuple(
            (frame, frame in anywhere)
            for frame in sorted({*anywhere, *self._recent})
            if object_id in self._memories[frame].labels
        )

    def _sharpen(
        self, soft: Mapping[int, Tensor], embedding: Tensor
    ) -> dict[int, Tensor]:
        """Logits (H, W): the decoder's where it agrees with the carried masks."""
        if not soft:
            return {}
        stacked = torch.stack(list(soft.values()))
        enlarged = enlarge(stacked, self._grid, STRIDE)
        wanted = enlarged - 0.5
        if not self._overlap:
            strongest = enlarged.amax(dim=0)
            wanted = torch.where(enlarged >= strongest, wanted, -CERTAIN)
        coarse = [
            drop_fragments(mask, self._settings.fragment)
            for mask in (wanted > 0).cpu().numpy()
        ]
        kept = torch.from_numpy(np.stack(coarse)).to(wanted.device)
        logits = torch.where(kept, wanted, -CERTAIN)
        boxes = [box_of_mask(mask) for mask in coarse]
        seen = [n for n, box in enumerate(boxes) if box is not None]
        if seen:
            rows, columns = stacked.shape[1:]
            size = (rows * STRIDE // MASK_STRIDE, columns * STRIDE // MASK_STRIDE)
            guess = F.interpolate(
                stacked[seen][:, None], size, mode="bilinear", align_corners=False
            )[:, 0]
            decoded = self._model.decode(
                embedding,
                self._grid,
                boxes=np.array([boxes[n] for n in seen], dtype=np.float32),
                mask_logits=torch.where(guess > 0.5, CERTAIN, -CERTAIN),
            ).logits
            for n, sharp in zip(seen, decoded, strict=True):
                both = ((sharp > 0) & kept[n]).sum()
                agreement = both / ((sharp > 0) | kept[n]).sum()
                if agreement >= self._settings.agreement:
                    logits[n] = sharp
        return dict(zip(soft, logits, strict=True))

    def _score(
        self,
        object_id: int,
        alike: Mapping[int, Tensor],
        colors: Tensor,
        share: Tensor,
    ) -> float:
        """How sure it is that a mask is the object's, in [0, 1]."""
        frames = self._prompted[object_id]
        looks = likeness(
            [alike[frame] for frame in frames],
            [self._memories[frame].labels[object_id] for frame in frames],
            share,
        )
        sure = [self._memories[k] for k in {*frames, *self._kept}]
        agreement = color_agreement(
            colors,
            share,
            [
                (memory.features[CHANNELS:], memory.labels[object_id])
                for memory in sure
                if object_id in memory.labels
            ],
        )
        low, high = _COLORS_DIFFER, _COLORS_AGREE
        certainty = min(max((agreement - low) / (high - low), 0.0), 1.0)
        # Light changes colors too, so they alone don't make an object lost.
        return looks * (_COLORLESS + (1 - _COLORLESS) * certainty)

    def _remember(
        self,
        index: int,
        memory: Memory,
        scores: Mapping[int, float],
        prompted: Collection[int],
    ) -> None:
        """Remembers a frame where it helps, and forgets those that no longer do."""
        settings = self._settings
        self._memories[index] = memory
        for object_id in prompted:
            # Where it was first and last shown by the user, however often that was.
            shown = self._prompted.get(object_id, [])
            self._prompted[object_id] = [*shown[:1], index]
        best = max(scores.values())
        if best >= settings.remembered_score:
            self._recent = [*self._recent, index][-settings.recent :]
        due = not self._kept or abs(index - self._kept[-1]) >= settings.kept_every
        if due and not prompted and best >= settings.kept_score:
            self._kept = [*self._kept, index][-settings.kept :]
        useful = {*self._recent, *self._kept, *chain(*self._prompted.values())}
        self._memories = {k: m for k, m in self._memories.items() if k in useful}

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that the next step depends on."""
        state: dict[str, NDArray[np.generic]] = {
            "ids": np.array(self._ids, dtype=np.int64),
            "kept": np.array(self._kept, dtype=np.int64),
            "recent": np.array(self._recent, dtype=np.int64),
            "memories": np.array(list(self._memories), dtype=np.int64),
        }
        if self._mean is not None:
            state["mean"] = self._mean.cpu().numpy()
        for object_id, frames in self._prompted.items():
            state[f"prompted.{object_id}"] = np.array(frames, dtype=np.int64)
        for frame, memory in self._memories.items():
            labels = torch.stack(list(memory.labels.values()))
            state[f"ids.{frame}"] = np.array(list(memory.labels), dtype=np.int64)
            state[f"labels.{frame}"] = labels.cpu().numpy()
            state[f"features.{frame}"] = memory.features.cpu().numpy()
        return state

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes up a :meth:`state`."""
        device = self._model.device

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.array(state[name])).to(device)

        self._ids = state["ids"].tolist()
        self._kept = state["kept"].tolist()
        self._recent = state["recent"].tolist()
        self._prompted = {k: state[f"prompted.{k}"].tolist() for k in self._ids}
        self._mean = tensor("mean") if "mean" in state else None
        self._memories = {}
        for frame in state["memories"].tolist():
            ids = state[f"ids.{frame}"].tolist()
            labels = dict(zip(ids, tensor(f"labels.{frame}"), strict=True))
            self._memories[frame] = Memory(tensor(f"features.{frame}"), labels)
