"""Captioning of streams, in batches or by a captioner's own stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeAlias, runtime_checkable

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.batching import caption_batch
from fiftyone_regioncap.core.types import Caption, RegionClip

OnToken: TypeAlias = Callable[[str], None]
"""Called with the text so far of the next caption whenever a token is added."""


@runtime_checkable
class StreamingCaptioner(Protocol):
    """A captioner that takes new clips while it still works on others."""

    def caption_stream(
        self,
        clips: Iterable[RegionClip],
        *,
        prompt: str | None = None,
        on_token: OnToken | None = None,
    ) -> Iterator[Caption]:
        """Describes each clip, in order, looking only a bounded number ahead.

        Args:
            clips: may never end.
            prompt: see :meth:`Captioner.caption`.
            on_token: called with the text so far of the next caption, by captioners
                that write token by token.
        """


def caption_stream(
    captioner: Captioner,
    clips: Iterable[RegionClip],
    *,
    prompt: str | None = None,
    on_token: OnToken | None = None,
) -> Generator[Caption, None, None]:
    """Describes each clip of a stream, in order; closing it stops the captioner.

    Args:
        captioner: used in batches of the size it likes, or by its own stream if it has
            one.
        clips: may come from many videos, and never end.
        prompt: see :meth:`Captioner.caption`.
        on_token: see :meth:`StreamingCaptioner.caption_stream`.
    """
    if isinstance(captioner, StreamingCaptioner):
        yield from captioner.caption_stream(clips, prompt=prompt, on_token=on_token)
        return
    clips = iter(clips)
    while batch := list(islice(clips, captioner.info.batch_size)):
        yield from caption_batch(captioner, batch, prompt=prompt)
