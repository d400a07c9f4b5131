"""Captioning of streams, in batches or by a captioner's own stream."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeAlias, cast, runtime_checkable

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.batching import caption_batch
from fiftyone_regioncap.core.errors import Canceled, FatalError
from fiftyone_regioncap.core.types import Caption, RegionClip

logger = logging.getLogger(__name__)

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
    clips = iter(clips)
    if isinstance(captioner, StreamingCaptioner):
        yield from _stream(captioner, clips, prompt, on_token)
        return
    while batch := list(islice(clips, captioner.info.batch_size)):
        try:
            captions = caption_batch(captioner, batch, prompt=prompt)
        except (Canceled, FatalError):
            raise
        except Exception as error:
            logger.warning("a batch of %d clips failed: %s", len(batch), error)
            captions = [_alone(captioner, clip, prompt) for clip in batch]
        yield from captions


def _alone(captioner: Captioner, clip: RegionClip, prompt: str | None) -> Caption:
    """Describes a clip; an error of the captioner is that of its caption."""
    try:
        return caption_batch(captioner, [clip], prompt=prompt)[0]
    except (Canceled, FatalError):
        raise
    except Exception as error:
        return Caption(error=f"{type(error).__name__}: {error}")


def _stream(
    captioner: StreamingCaptioner,
    clips: Iterator[RegionClip],
    prompt: str | None,
    on_token: OnToken | None,
) -> Generator[Caption, None, None]:
    """Describes clips by a captioner's own stream.

    When the stream fails, the clips that it had taken are described one by one, so that
    only those which are at fault have an error, and a new stream takes the others.
    """
    taken: deque[RegionClip] = deque()
    broken: list[BaseException] = []

    def source() -> Iterator[RegionClip]:
        try:
            for clip in clips:
                taken.append(clip)
                yield clip
        except Exception as error:
            broken.append(error)
            raise

    while True:
        failed: Exception | None = None
        stream = captioner.caption_stream(source(), prompt=prompt, on_token=on_token)
        try:
            for caption in stream:
                if not taken:
                    raise FatalError("the captioner gives more captions than clips")
                taken.popleft()
                yield caption
        except (Canceled, FatalError):
            raise
        except Exception as error:
            if broken:
                raise
            logger.warning("the captioner's stream failed: %s", error)
            failed = error
        finally:
            if isinstance(stream, Generator):
                stream.close()
        if not taken:
            if failed is not None:
                raise failed
            return
        left = list(taken)
        taken.clear()
        for clip in left:
            yield _alone(cast(Captioner, captioner), clip, prompt)
