"""Protocols of captioners: clips of one object each in, captions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Caption, RegionClip


@dataclass(frozen=True)
class EmbeddingSpace:
    """Identifies an embedding space; vectors of two spaces can't be compared.

    Attributes:
        captioner: Name of the captioner in the registry.
        model: Folder or hub id that the captioner is loaded from.
        fingerprint: Hash of everything that the vectors of regions depend on, so that
            other weights under the same name are noticed.
        dimension: Number of components of a vector.
    """

    captioner: str
    model: str
    fingerprint: str
    dimension: int


@dataclass(frozen=True)
class CaptionerInfo:
    """Describes a captioner: its weights, license, needs and prompts.

    Attributes:
        name: Name that users choose it by, such as ``"dam-video"``.
        model: Published name of the weights; the captioner's own name if it has none.
        revision: Revision of the weights: a hub commit or a sha256; the package's
            version if there are none.
        license: SPDX id of the weights' license, or a short name for others.
        frames: Number of frames used of each clip; 1 for image models.
        batch_size: Recommended number of clips per batch on this device.
        prompts: Prompt texts by name; empty if there are none to choose from.
        takes_prompt: Whether the captioner can be told what to say.
        tasks: Predictions it makes: any of caption, tags, attributes and category.
        space: Embedding space of the embeddings that come with its captions; None if
            captions have no embeddings.
    """

    name: str
    model: str
    revision: str
    license: str
    frames: int = 1
    batch_size: int = 1
    prompts: Mapping[str, str] = field(default_factory=dict)
    takes_prompt: bool = True
    tasks: frozenset[str] = frozenset({"caption"})
    space: EmbeddingSpace | None = None

    def check_prompt(self, prompt: str | None) -> None:
        """Checks that the captioner can be given a prompt.

        Raises:
            BackendError: If there is a prompt and the captioner takes none.
        """
        if prompt is not None and not self.takes_prompt:
            raise BackendError(
                f"the captioner {self.name} takes no prompt; leave it out"
            )


class Captioner(Protocol):
    """Generates captions of regions.

    A class that a :class:`~fiftyone_regioncap.models.registry.ModelCard` names also has
    a class method ``from_pretrained(weights, *, device, options)``, which makes it:
    from the weights (None where the card names none), on a device (None for the best),
    with the options of its card. It keeps them as its attribute ``options``: what was
    made with others is made again.
    """

    @property
    def info(self) -> CaptionerInfo:
        """Returns the captioner's name, weights, license and needs."""

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order.

        A bad clip (empty mask, wrong size) gives a caption with ``error`` set and
        leaves the others alone. Greedy captions don't depend on what else is in the
        batch.

        Args:
            clips: Clips of any objects, videos, sizes and lengths.
            prompt: Name of one of the prompts of ``info``, or a custom text; None for
                the default prompt.

        Raises:
            torch.OutOfMemoryError: If the batch doesn't fit into memory; the caller
                then makes it smaller (see
                :mod:`fiftyone_regioncap.captioning.batching`).
        """


@runtime_checkable
class TextEncoder(Protocol):
    """Embeds texts into the embedding space of a captioner's regions."""

    @property
    def space(self) -> EmbeddingSpace:
        """Returns the embedding space, which texts and regions share."""

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
    """Embeds regions without captioning them, for maps, search and checks."""

    @property
    def info(self) -> CaptionerInfo:
        """Returns the captioner's information; ``space`` is that of the vectors."""

    def embed(self, clips: Sequence[RegionClip]) -> NDArray[np.float32]:
        """Embeds clips as unit vectors (N, dimension); rows of NaN for bad ones."""
