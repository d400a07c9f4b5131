"""Follows objects from frame to frame over MobileSAM's embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.propagation.competition import compete, drop_fragments
from fiftyone_regioncap.propagation.mobilesam.matching import (
    Memory,
    carry,
    cell_shares,
    offset_penalty,
    unit_features,
)
from fiftyone_regioncap.propagation.mobilesam.prompting import CERTAIN, prompted_logits
from fiftyone_regioncap.propagation.mobilesam.segmenter import (
    INPUT_SIDE,
    Grid,
    MobileSam,
    enlarge,
)
from fiftyone_regioncap.regions import Frame, ObjectMask, Prompt, box_of_mask


@dataclass(frozen=True)
class Settings:
    """How objects are followed.

    Attributes:
        side: longest side of the encoder's input in pixels, a multiple of 16.
        recent: frames remembered besides the prompted ones.
        prompt_radius: window around each cell in prompted frames, as a share of the
            longest side.
        recent_radius: the same in recent frames.
        neighbours: matches counted for each cell.
        temperature: of the softmax over them.
        fragment: parts smaller than this share of the largest are dropped.
        agreement: least IoU of the decoder's mask with the carried one to be trusted.
        visible: least score of a mask that is given out.
    """

    side: int = INPUT_SIDE
    recent: int = 4
    prompt_radius: float = 24 / 64
    recent_radius: float = 12 / 64
    neighbours: int = 8
    temperature: float = 0.07
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
        cells = grid.side / 16
        radii = (settings.prompt_radius * cells, settings.recent_radius * cells)
        self._penalty_prompt, self._penalty_recent = (
            offset_penalty(rows, columns, round(radius), model.device)
            for radius in radii
        )
        self._mean: Tensor | None = None
        self._memories: list[Memory] = []
        self._ids: list[int] = []

    @torch.inference_mode()
    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Takes the next frame; see the protocol."""
        embedding = self._model.encode(frame, side=self._grid.side)
        if self._mean is None:
            self._mean = embedding.mean(dim=(1, 2))
        features = unit_features(embedding, self._mean)
        by_id: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_id.setdefault(prompt.object_id, []).append(prompt)
        self._ids += [object_id for object_id in by_id if object_id not in self._ids]

        logits = {
            object_id: prompted_logits(self._model, embedding, self._grid, given)
            for object_id, given in by_id.items()
        }
        carried = [object_id for object_id in self._ids if object_id not in by_id]
        logits |= self._carry(carried, features, embedding)
        claims = torch.stack([logits[object_id] for object_id in self._ids]).numpy()
        masks = claims > 0 if self._overlap else compete(claims)
        shares = cell_shares(torch.from_numpy(masks).float(), self._grid)

        results = {}
        labels = {}
        for object_id, mask, share in zip(self._ids, masks, shares, strict=True):
            prompted = object_id in by_id
            score = 1.0 if prompted else self._likeness(object_id, features, share)
            visible = mask.any() and score >= self._settings.visible
            if not visible:
                share = torch.zeros_like(share)
            labels[object_id] = share
            results[object_id] = ObjectMask(mask if visible else None, score)
        self._remember(Memory(index, features, labels, bool(by_id)))
        return results

    def _carry(
        self, object_ids: Sequence[int], features: Tensor, embedding: Tensor
    ) -> dict[int, Tensor]:
        """Logits (H, W) of the objects that were not prompted on this frame."""
        if not object_ids:
            return {}
        logits = {}
        for object_id in object_ids:
            memories = [m for m in self._memories if object_id in m.labels]
            penalties: list[Tensor | None] = [
                self._penalty_prompt if m.permanent else self._penalty_recent
                for m in memories
            ]
            soft = carry(
                features,
                memories,
                penalties,
                [object_id],
                neighbours=self._settings.neighbours,
                temperature=self._settings.temperature,
            )
            logits[object_id] = self._sharpen(soft, embedding)
        return logits

    def _sharpen(self, soft: Tensor, embedding: Tensor) -> Tensor:
        """The decoder's mask where it agrees with the carried one (1, rows, columns)."""
        probability = enlarge(soft, self._grid)[0]
        coarse = drop_fragments((probability > 0.5).numpy(), self._settings.fragment)
        box = box_of_mask(coarse)
        fallback = torch.where(torch.from_numpy(coarse), probability - 0.5, -CERTAIN)
        if box is None:
            return fallback
        rows, columns = soft.shape[1:]
        fine = F.interpolate(
            soft[None], (rows * 4, columns * 4), mode="bilinear", align_corners=False
        )[0]
        decoded = self._model.decode(
            embedding,
            self._grid,
            boxes=np.array([box], dtype=np.float32),
            mask_logits=torch.where(fine > 0.5, CERTAIN, -CERTAIN),
        ).logits[0]
        sharp = (decoded > 0).numpy()
        union = np.count_nonzero(sharp | coarse)
        agreement = np.count_nonzero(sharp & coarse) / union
        return decoded if agreement >= self._settings.agreement else fallback

    def _likeness(self, object_id: int, features: Tensor, share: Tensor) -> float:
        """How much the masked cells look like the object where it was prompted."""
        weight = share.flatten()
        if not bool(weight.any()):
            return 0.0
        cells = features.flatten(1)[:, weight > 0].T
        best_on, best_off = [], []
        for memory in self._memories:
            if not memory.permanent or object_id not in memory.labels:
                continue
            label = memory.labels[object_id].flatten()
            alike = cells @ memory.features.flatten(1)
            best_on.append(alike[:, label > 0.5 * label.max()].amax(dim=1))
            best_off.append(alike[:, label == 0].amax(dim=1))
        margin = torch.stack(best_on).amax(dim=0) - torch.stack(best_off).amax(dim=0)
        chance = torch.sigmoid(margin / 0.05)
        return float((chance * weight[weight > 0]).sum() / weight.sum())

    def _remember(self, memory: Memory) -> None:
        """Adds a frame and forgets the oldest that was not prompted on."""
        self._memories.append(memory)
        recent = [m for m in self._memories if not m.permanent]
        for old in recent[: len(recent) - self._settings.recent]:
            self._memories.remove(old)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that the next step depends on."""
        state: dict[str, NDArray[np.generic]] = {
            "ids": np.array(self._ids, dtype=np.int64),
            "frames": np.array([m.frame for m in self._memories], dtype=np.int64),
            "permanent": np.array([m.permanent for m in self._memories], dtype=bool),
        }
        if self._mean is not None:
            state["mean"] = self._mean.cpu().numpy()
        for number, memory in enumerate(self._memories):
            state[f"{number}.features"] = memory.features.cpu().numpy()
            state[f"{number}.ids"] = np.array(list(memory.labels), dtype=np.int64)
            state[f"{number}.labels"] = (
                torch.stack(list(memory.labels.values())).cpu().numpy()
            )
        return state

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes up a :meth:`state`."""
        device = self._model.device

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.array(state[name])).to(device)

        self._ids = state["ids"].tolist()
        self._mean = tensor("mean") if "mean" in state else None
        self._memories = []
        for number, frame in enumerate(state["frames"].tolist()):
            ids = state[f"{number}.ids"].tolist()
            labels = dict(zip(ids, tensor(f"{number}.labels"), strict=True))
            self._memories.append(
                Memory(
                    frame,
                    tensor(f"{number}.features"),
                    labels,
                    bool(state["permanent"][number]),
                )
            )
