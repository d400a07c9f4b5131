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
            clips: Clips to describe; the stream may be endless.
            prompt: Prompt, see :meth:`Captioner.caption`.
            on_token: Called with the text so far of the next caption, by captioners
                that generate token by token.
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
        captioner: Captioner to use, in batches of its recommended size or through its
            own stream if it has one.
        clips: Clips of any number of videos; the stream may be endless.
        prompt: Prompt, see :meth:`Captioner.caption`.
        on_token: Listener to tokens, see :meth:`StreamingCaptioner.caption_stream`.
    """
    if isinstance(captioner, StreamingCaptioner):
        yield from captioner.caption_stream(clips, prompt=prompt, on_token=on_token)
        return
    clips = iter(clips)
    while batch := list(islice(clips, captioner.info.batch_size)):
        yield from caption_batch(captioner, batch, prompt=prompt)
