"""Captioning in batches that are halved when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Caption, RegionClip
from fiftyone_regioncap.models.devices import is_out_of_memory, release_memory


def out_of_memory_caption(error: BaseException) -> Caption:
    """Returns the caption of a clip that doesn't fit into memory even alone."""
    reason = str(error).splitlines()[0] if str(error) else "out of memory"
    return Caption(
        error=f"this clip alone doesn't fit into memory ({reason}); use a smaller "
        "model, a lower precision, or another device"
    )


def caption_batch(
    captioner: Captioner, clips: Sequence[RegionClip], *, prompt: str | None = None
) -> list[Caption]:
    """Describes clips, in smaller batches when memory runs out.

    Args:
        captioner: Captioner to use.
        clips: Clips, as for :meth:`Captioner.caption`.
        prompt: Prompt, as for :meth:`Captioner.caption`.

    Returns:
        One caption a clip, in order; a clip that doesn't fit even alone has an error.

    Raises:
        BackendError: When the captioner gives another number of captions.
    """
    captions: list[Caption] = []
    size = len(clips)
    while len(captions) < len(clips):
        batch = clips[len(captions) : len(captions) + size]
        try:
            found = captioner.caption(batch, prompt=prompt)
            if len(found) != len(batch):
                raise BackendError(
                    f"the captioner gave {len(found)} captions for {len(batch)} clips"
                )
            captions.extend(found)
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = out_of_memory_caption(error)
        # Outside the handler: the error's traceback holds on to the tensors.
        release_memory()
        if len(batch) == 1:
            captions.append(failure)
        else:
            size = (len(batch) + 1) // 2
    return captions
