"""Feeds a captioner from a stream of clips, whatever it likes to be fed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeAlias, runtime_checkable

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.batching import caption_batch
from fiftyone_regioncap.core.types import Caption, RegionClip

Tell: TypeAlias = Callable[[str], None]
"""Takes the text so far of the caption that comes next."""


@runtime_checkable
class StreamingCaptioner(Protocol):
    """A captioner that takes new clips while it still works on others."""

    def caption_stream(
        self,
        clips: Iterable[RegionClip],
        *,
        prompt: str | None = None,
        tell: Tell | None = None,
    ) -> Iterator[Caption]:
        """Describes each clip, in order, looking only a bounded number ahead.

        Args:
            clips: may never end.
            prompt: see :meth:`Captioner.caption`.
            tell: is told of the caption that comes next while it is written, by
                captioners that write word by word.
        """


def caption_stream(
    captioner: Captioner,
    clips: Iterable[RegionClip],
    *,
    prompt: str | None = None,
    tell: Tell | None = None,
) -> Generator[Caption, None, None]:
    """Describes each clip of a stream, in order; closing it stops the captioner.

    Args:
        captioner: used in batches of the size it likes, or by its own stream if it has
            one.
        clips: may come from many videos, and never end.
        prompt: see :meth:`Captioner.caption`.
        tell: see :meth:`StreamingCaptioner.caption_stream`.
    """
    if isinstance(captioner, StreamingCaptioner):
        yield from captioner.caption_stream(clips, prompt=prompt, tell=tell)
        return
    clips = iter(clips)
    while batch := list(islice(clips, captioner.info.batch_size)):
        yield from caption_batch(captioner, batch, prompt=prompt)
