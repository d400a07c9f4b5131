"""MobileSAM's tracker: follows objects from frame to frame by their features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.types import Frame, Mask, ObjectMask, Prompt
from fiftyone_regioncap.propagation.competition import compete
from fiftyone_regioncap.propagation.mobilesam.labels import (
    BLOCK,
    enlarge_to_frame,
    from_blocks,
    shrink,
    to_blocks,
)
from fiftyone_regioncap.propagation.mobilesam.matching import (
    Describer,
    carry,
    offsets_squared,
)
from fiftyone_regioncap.propagation.mobilesam.memory import Memory, MemoryBank
from fiftyone_regioncap.propagation.mobilesam.prompting import prompted_logits
from fiftyone_regioncap.propagation.mobilesam.refining import refine
from fiftyone_regioncap.propagation.mobilesam.searching import around, center, searched
from fiftyone_regioncap.propagation.mobilesam.segmenter import (
    CERTAIN,
    Encoding,
    Grid,
    MobileSam,
    Part,
    half_is_fast,
)
from fiftyone_regioncap.propagation.mobilesam.settings import Settings
from fiftyone_regioncap.propagation.mobilesam.tinyvit import STRIDE


@dataclass(frozen=True)
class Followed:
    """Represents an object on a frame where it isn't prompted.

    Attributes:
        logits: Mask logits, float (H, W), above 0 on the object.
        agreement: IoU of the decoder's mask and the carried one, in [0, 1].
        trust: The agreement, less where the mask looks unlike the object on prompted
            frames, in [0, 1]. A mask is shown, and a frame kept, by it.
        score: The trust, less where matches disagree, in [0, 1]. To decide by it what
            is shown and remembered lost objects among their like.
    """

    logits: NDArray[np.float32]
    agreement: float
    trust: float
    score: float


class MobileSamTracker:
    """A :class:`~fiftyone_regioncap.propagation.stream.Tracker` of several objects."""

    def __init__(
        self, model: MobileSam, grid: Grid, settings: Settings, overlap: bool
    ) -> None:
        """Starts with nothing seen.

        Args:
            model: MobileSAM model.
            grid: Cell grid of the video's frames.
            settings: Settings of tracking.
            overlap: Whether objects may share pixels.
        """
        self._model = model
        self._grid = grid
        self._settings = settings
        self._overlap = overlap
        cells = grid.side / STRIDE
        self._radius = settings.radius * cells
        self._reach = round(settings.reach * cells)
        self._half = (
            settings.reduced_precision
            if settings.reduced_precision is not None
            else half_is_fast(model.device)
        )
        self._describer = Describer(settings.dimensions)
        self._bank = MemoryBank(settings)
        # By object id, uint8 (cells, 16) of the previous frame; none while it is lost.
        self._last: dict[int, Tensor | None] = {}
        # By object id, mean embedding (256,) on the latest prompted frame.
        self._targets: dict[int, Tensor] = {}

    @torch.inference_mode()
    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Takes the next frame; see the protocol."""
        part = self._grid.whole
        if not prompts:
            part = searched(self._last.values(), self._grid, self._reach)
        encoding = self._model.encode_stages(
            frame, side=self._grid.side, half=self._half, part=part
        )
        features = self._describer.describe(encoding, self._grid)
        features = features.to(torch.bfloat16 if self._half else torch.float32)
        similarities = self._similarities(features, part)
        by_id: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_id.setdefault(prompt.object_id, []).append(prompt)
        followed = self._follow(
            [known for known in self._last if known not in by_id],
            similarities,
            encoding,
        )
        claims = dict.fromkeys(self._last, np.empty(0, dtype=np.float32))
        agreements = dict.fromkeys(self._last, 1.0)
        trusts, scores = agreements.copy(), agreements.copy()
        for object_id, found in followed.items():
            claims[object_id], agreements[object_id] = found.logits, found.agreement
            trusts[object_id], scores[object_id] = found.trust, found.score
        for object_id, given in by_id.items():
            shown = prompted_logits(self._model, encoding.embedding, self._grid, given)
            claims[object_id] = shown.cpu().numpy()
            agreements[object_id] = trusts[object_id] = scores[object_id] = 1.0
            self._correct(object_id, claims[object_id] > 0, similarities)
            shares = to_blocks(shrink(claims[object_id] > 0, self._grid))
            weights = shares.to(self._model.device).float().sum(dim=1)
            target = encoding.embedding.flatten(1) @ weights
            self._targets[object_id] = target / weights.sum().clamp(min=1.0)
        stacked = np.stack(list(claims.values()))
        masks = stacked > 0 if self._overlap else compete(stacked)

        results, labels = {}, {}
        for object_id, mask in zip(claims, masks, strict=True):
            visible = mask.any() and trusts[object_id] >= self._settings.visible
            results[object_id] = ObjectMask(
                mask if visible else None, scores[object_id]
            )
            self._last[object_id] = None
            if visible:
                label = to_blocks(shrink(mask, self._grid)).to(self._model.device)
                self._last[object_id] = labels[object_id] = label
        self._bank.remember(
            index, Memory(features, labels), agreements, trusts, by_id.keys()
        )
        return results

    def _similarities(self, features: Tensor, part: Part) -> dict[int, Tensor]:
        """Returns how alike cells (rows) are to those of each remembered frame."""
        known = self._bank.frames.items()
        if part == self._grid.whole:
            return {index: features @ memory.features.T for index, memory in known}
        encoded = torch.zeros(self._grid.cells, dtype=torch.bool)
        encoded[part.slices()] = True
        cells = encoded.flatten().nonzero()[:, 0].to(features.device)
        similarities = {}
        for index, memory in known:
            alike = features.new_zeros(len(features), len(features))
            alike[cells] = features[cells] @ memory.features.T
            similarities[index] = alike
        return similarities

    def _follow(
        self,
        object_ids: Sequence[int],
        similarities: Mapping[int, Tensor],
        encoding: Encoding,
    ) -> dict[int, Followed]:
        """Returns objects seen before, by their id."""
        if not object_ids:
            return {}
        carried, familiar = zip(
            *(self._carry(object_id, similarities) for object_id in object_ids),
            strict=True,
        )
        soft = torch.stack(carried)
        if not self._overlap and len(soft) > 1:
            soft = torch.where(soft >= soft.amax(dim=0), soft, 0.0)
        found = {}
        targets = torch.stack([self._targets[object_id] for object_id in object_ids])
        masks = refine(self._model, encoding, self._grid, soft, targets, self._settings)
        for object_id, refined, best in zip(object_ids, masks, familiar, strict=True):
            size = (self._grid.height, self._grid.width)
            if refined is None:
                nowhere = np.full(size, -CERTAIN, dtype=np.float32)
                found[object_id] = Followed(nowhere, 0.0, 0.0, 0.0)
            else:
                logits = enlarge_to_frame(refined.logits, self._grid)
                trust = refined.agreement * self._familiarity(refined.mask, best)
                found[object_id] = Followed(
                    logits,
                    refined.agreement,
                    trust,
                    trust * _rise(refined.certainty, self._settings.certain),
                )
        return found

    def _carry(
        self, object_id: int, similarities: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns an object's soft mask (rows * 4, columns * 4), and similarities."""
        settings = self._settings
        rows, columns = self._grid.cells
        last = self._last[object_id]
        known = self._bank.known(object_id)
        blocks = torch.zeros(rows * columns, BLOCK * BLOCK, device=self._model.device)
        best = blocks.new_zeros(rows * columns)
        if not known:
            return from_blocks(blocks, self._grid), best
        labels = {
            k: self._bank.frames[k].labels[object_id].float() / 255 for k in known
        }
        cells = around(last, self._grid, self._reach).to(self._model.device)
        # The latest prompt outvotes the first where the two disagree.
        prompted = [k for k in self._bank.prompted(object_id) if k in known]
        latest = prompted[-1] if len(prompted) > 1 else None
        if last is not None:
            here = center(last, self._grid)
            # What isn't the object may stay where it is while the object moves.
            still = offsets_squared(cells, columns, rows, (0.0, 0.0))
        alike = {}
        for k, role in known.items():
            alike[k] = similarities[k][cells].float()
            if role == "recent" or k == latest:
                alike[k] += settings.recency
            if last is not None:
                there = center(labels[k], self._grid)
                shift = (here[0] - there[0], here[1] - there[1])
                far = offsets_squared(cells, columns, rows, shift)
                background = still.masked_fill(labels[k].any(dim=1), math.inf)
                far = torch.minimum(far, background)
                far.mul_(settings.distance / self._radius**2)
                alike[k] -= far.clamp_(max=settings.distance)
        vote = partial(
            carry, neighbors=settings.neighbors, temperature=settings.temperature
        )
        blocks[cells] = vote(list(alike.values()), list(labels.values()))
        # What recent frames know may already be wrong; the others are sure.
        for k in known.keys() - {k for k, role in known.items() if role == "recent"}:
            own = alike[k][:, labels[k].any(dim=1)]
            best[cells] = torch.maximum(best[cells], own.amax(dim=1))
        near = around((blocks > 0.5) * 1, self._grid, settings.anchor_reach)
        near = torch.isin(cells, near).nonzero()[:, 0]
        if prompted and len(near):
            anchored = vote(
                [alike[k][near] for k in prompted], [labels[k] for k in prompted]
            )
            anchored *= settings.anchor
            blocks[cells[near]] = torch.maximum(blocks[cells[near]], anchored)
        return from_blocks(blocks, self._grid), best

    def _familiarity(self, mask: Mask, best: Tensor) -> float:
        """Returns how much a mask's cells look like the object, in [0, 1]."""
        rows, columns = self._grid.cells
        covered = mask.reshape(rows, BLOCK, columns, BLOCK).any(axis=(1, 3))
        on = torch.from_numpy(covered).to(best.device).flatten()
        return _rise(float(best[on].mean()), self._settings.familiar)

    def _correct(
        self, object_id: int, mask: Mask, similarities: Mapping[int, Tensor]
    ) -> None:
        """Forgets what a new prompt of an object shows to be wrong."""
        contradicted = []
        for known in self._bank.prompted(object_id):
            if object_id not in self._bank.frames[known].labels:
                continue  # others took all of it
            carried = carry(
                [similarities[known].float()],
                [self._bank.frames[known].labels[object_id].float() / 255],
                neighbors=self._settings.neighbors,
                temperature=self._settings.temperature,
            )
            expected = from_blocks(carried, self._grid).cpu().numpy() > 0.5
            given = shrink(mask, self._grid) > 0.5
            overlap = (expected & given).sum() / max((expected | given).sum(), 1)
            if overlap < self._settings.contradiction:
                contradicted.append(known)
        self._bank.correct(object_id, contradicted)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that the next step depends on."""
        state = self._bank.state()
        for name, tensor in self._describer.state().items():
            state[name] = tensor.cpu().numpy()
        state["ids"] = np.array(list(self._last), dtype=np.int64)
        for object_id, label in self._last.items():
            state[f"target.{object_id}"] = self._targets[object_id].cpu().numpy()
            if label is not None:
                state[f"last.{object_id}"] = label.cpu().numpy()
        return state

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes up a :meth:`state`."""
        device = self._model.device

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.array(state[name])).to(device)

        self._bank.restore(state, device)
        names = [name for name in ("mean", "components") if name in state]
        self._describer.restore({name: tensor(name) for name in names})
        self._targets = {k: tensor(f"target.{k}") for k in state["ids"].tolist()}
        self._last = {
            k: tensor(f"last.{k}") if f"last.{k}" in state else None
            for k in state["ids"].tolist()
        }


def _rise(value: float, between: tuple[float, float]) -> float:
    """Returns where a value is between two others, 0 to 1."""
    low, high = between
    return min(max((value - low) / (high - low), 0.0), 1.0)
