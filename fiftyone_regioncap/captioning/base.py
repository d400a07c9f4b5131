"""Protocols of captioners: clips of one object each in, captions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Caption, RegionClip


@dataclass(frozen=True)
class EmbeddingSpace:
    """Where a captioner places regions; vectors of two spaces can't be compared.

    Attributes:
        captioner: its name in the registry.
        model: the folder or hub id that it is loaded from.
        fingerprint: of all that the vectors of regions depend on, so that other weights
            under the same name are found out.
        dimension: of the vectors.
    """

    captioner: str
    model: str
    fingerprint: str
    dimension: int


@dataclass(frozen=True)
class CaptionerInfo:
    """Describes a captioner: its weights, license, needs and prompts.

    Attributes:
        name: as users choose it, such as ``"dam-video"``.
        model: the published name of the weights; the captioner's own name if none.
        revision: of the weights: a hub commit or a sha256; the package's version if
            there are none.
        license: SPDX id of the weights' license, or a short name for others.
        frames: how many frames of a clip it looks at; 1 for image models.
        batch_size: how many clips it likes to get at once on this device.
        prompts: text by name; empty where it takes no prompt.
        tasks: what it answers, out of caption, tags, attributes and category.
        space: of the embeddings that come with its captions; None where none do.
    """

    name: str
    model: str
    revision: str
    license: str
    frames: int = 1
    batch_size: int = 1
    prompts: Mapping[str, str] = field(default_factory=dict)
    tasks: frozenset[str] = frozenset({"caption"})
    space: EmbeddingSpace | None = None


class Captioner(Protocol):
    """Describes regions."""

    @property
    def info(self) -> CaptionerInfo:
        """Name, weights, license and needs."""

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order.

        A bad clip (empty mask, wrong size) gives a caption with ``error`` set and
        leaves the others alone. Greedy captions don't depend on what else is in the
        batch.

        Args:
            clips: of any objects, videos, sizes and lengths.
            prompt: the name of one of the prompts of ``info``, or a text of one's own;
                None means the default.

        Raises:
            torch.OutOfMemoryError: when the batch doesn't fit; the caller makes it
                smaller (see :func:`fiftyone_regioncap.captioning.batching`).
        """


@runtime_checkable
class TextEncoder(Protocol):
    """Embeds texts into the embedding space of a captioner's regions."""

    @property
    def space(self) -> EmbeddingSpace:
        """The embedding space, which texts and regions share."""

    @property
    def text_fingerprint(self) -> str:
        """Identifies everything that the embeddings of texts depend on."""

    def embed_text(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: Any number of texts.
            truncate: Whether to truncate texts that are too long for the model.

        Returns:
            Unit vectors, float32 (N, dimension).

        Raises:
            PromptError: If a text is too long and ``truncate`` is false.
            WeightsError: If the weights of the text encoder are missing.
        """


@runtime_checkable
class RegionEmbedder(Protocol):
    """A captioner that can also only embed regions, for maps, search and checks."""

    @property
    def info(self) -> CaptionerInfo:
        """Its ``space`` is that of the vectors."""

    def embed(self, clips: Sequence[RegionClip]) -> NDArray[np.float32]:
        """Embeds clips as unit vectors (N, dimension); rows of NaN for bad ones."""
