"""Memory of earlier frames, and what a correction makes it forget."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.propagation.mobilesam.settings import Settings

Role: TypeAlias = Literal["prompted", "kept", "recent"]


@dataclass
class Memory:
    """Represents a remembered frame.

    Attributes:
        features: Unit feature vector of each cell, (cells, dimensions).
        labels: Sub-cell shares of each object by object id, uint8 (cells, 16), 255 for
            all of a sub-cell. An object that was lost on the frame has none, so that
            the frame doesn't say that it is nowhere.
    """

    features: Tensor
    labels: dict[int, Tensor]


class MemoryBank:
    """Holds remembered frames in their roles; their number is bounded.

    A frame may have several roles: each object's first and last prompted frame, the
    latest frames, and a few older ones on which an object was surely seen.
    """

    def __init__(self, settings: Settings) -> None:
        """Starts with nothing remembered.

        Args:
            settings: Settings, which say how many frames of each role are kept, and
                when.
        """
        self._settings = settings
        self._prompted: dict[int, list[int]] = {}
        self._kept: list[int] = []
        self._recent: list[int] = []
        self.frames: dict[int, Memory] = {}

    def prompted(self, object_id: int) -> list[int]:
        """Returns the prompted frames of an object that are remembered."""
        return self._prompted.get(object_id, [])

    def known(self, object_id: int) -> dict[int, Role]:
        """Returns frames that show an object, by index, with their role for it."""
        roles: dict[int, Role] = dict.fromkeys(self._kept, "kept")
        roles |= dict.fromkeys(self._recent, "recent")
        roles |= dict.fromkeys(self.prompted(object_id), "prompted")
        return {
            index: roles[index]
            for index in sorted(roles)
            if object_id in self.frames[index].labels
        }

    def correct(self, object_id: int, contradicted: Collection[int]) -> None:
        """Forgets what a new prompt of an object shows to be wrong or unsure.

        Args:
            object_id: Id of the object.
            contradicted: Older prompted frames of the object that the new prompt
                contradicts.
        """
        left = [k for k in self.prompted(object_id) if k not in contradicted]
        if object_id in self._prompted:
            self._prompted[object_id] = left
        for index, memory in self.frames.items():
            if index not in left:
                memory.labels.pop(object_id, None)

    def remember(
        self,
        index: int,
        memory: Memory,
        agreements: Mapping[int, float],
        trusts: Mapping[int, float],
        prompted: Collection[int],
    ) -> None:
        """Remembers a frame where it helps, and forgets those that no longer do.

        Args:
            index: 0-based index of the frame.
            memory: Features and labels of the frame.
            agreements: IoU of the decoder's mask and the carried mask by object id.
            trusts: Trust in the object's mask by object id, in [0, 1].
            prompted: Ids of the objects that were prompted on it.
        """
        settings = self._settings
        self.frames[index] = memory
        for object_id in prompted:
            # Where it was first and last shown by the user, however often that was.
            self._prompted[object_id] = [*self.prompted(object_id)[:1], index]
        if max(agreements.values()) >= settings.remembered:
            self._recent = [*self._recent, index][-settings.recent :]
        due = not self._kept or abs(index - self._kept[-1]) >= settings.kept_every
        if (
            settings.kept
            and due
            and not prompted
            and max(trusts.values()) >= settings.kept_trust
        ):
            self._kept = [*self._kept, index][-settings.kept :]
        useful = {*self._recent, *self._kept, *chain(*self._prompted.values())}
        self.frames = {k: m for k, m in self.frames.items() if k in useful}

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that is remembered, as arrays by name."""
        state: dict[str, NDArray[np.generic]] = {
            "kept": np.array(self._kept, dtype=np.int64),
            "recent": np.array(self._recent, dtype=np.int64),
            "memories": np.array(list(self.frames), dtype=np.int64),
        }
        for object_id, frames in self._prompted.items():
            state[f"prompted.{object_id}"] = np.array(frames, dtype=np.int64)
        for index, memory in self.frames.items():
            features = memory.features.cpu()
            if features.dtype == torch.bfloat16:  # which numpy doesn't have
                features = features.view(torch.int16)
            state[f"features.{index}"] = features.numpy()
            for object_id, label in memory.labels.items():
                state[f"label.{index}.{object_id}"] = label.cpu().numpy()
        return state

    def restore(
        self, state: Mapping[str, NDArray[np.generic]], device: torch.device
    ) -> None:
        """Takes up a :meth:`state`."""
        self._kept = state["kept"].tolist()
        self._recent = state["recent"].tolist()
        self._prompted = {
            int(name.split(".")[1]): array.tolist()
            for name, array in state.items()
            if name.startswith("prompted.")
        }
        self.frames = {}
        for index in state["memories"].tolist():
            features = torch.from_numpy(np.array(state[f"features.{index}"]))
            if features.dtype == torch.int16:
                features = features.view(torch.bfloat16)
            self.frames[index] = Memory(features.to(device), {})
        for name, array in state.items():
            if name.startswith("label."):
                _, index, object_id = name.split(".")
                label = torch.from_numpy(np.array(array)).to(device)
                self.frames[int(index)].labels[int(object_id)] = label
