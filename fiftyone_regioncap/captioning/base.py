"""What a captioner is: clips of one object each in, captions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fiftyone_regioncap.regions import Caption, RegionClip


@dataclass(frozen=True)
class CaptionerInfo:
    """What a captioner says of itself.

    Attributes:
        name: as users choose it, such as ``"dam-video"``.
        model: the published name of the weights; the captioner's own name if none.
        revision: of the weights: a hub commit or a sha256; the package's version if
            there are none.
        license: SPDX id of the weights' licence, or a short name for others.
        frames: how many frames of a clip it looks at; 1 for image models.
        batch_size: how many clips it likes to get at once on this device.
        prompts: text by name; empty where it takes no prompt.
        tasks: what it answers, out of caption, tags, attributes and category.
    """

    name: str
    model: str
    revision: str
    license: str
    frames: int = 1
    batch_size: int = 1
    prompts: Mapping[str, str] = field(default_factory=dict)
    tasks: frozenset[str] = frozenset({"caption"})


class Captioner(Protocol):
    """Describes regions."""

    @property
    def info(self) -> CaptionerInfo:
        """Name, weights, licence and needs."""

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
