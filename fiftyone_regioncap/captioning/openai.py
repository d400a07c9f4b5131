"""Captions from an OpenAI-compatible endpoint.

Either a DAM server (``regioncap serve`` or the authors' own), which takes the mask as
the image's alpha channel, or any vision model (vLLM, OpenAI), which is shown the region
outlined or cut out.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
from PIL import Image

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.checking import check_clip
from fiftyone_regioncap.captioning.confidence import SPACE, caption_from_tokens
from fiftyone_regioncap.captioning.configuration import OpenAIOptions, RegionView
from fiftyone_regioncap.captioning.dam.processing import crop_window
from fiftyone_regioncap.captioning.dam.prompts import (
    IMAGE_PROMPTS,
    JOINT_IMAGE_PROMPTS,
    VIDEO_PROMPTS,
)
from fiftyone_regioncap.captioning.feeding import Feeder
from fiftyone_regioncap.captioning.streaming import OnToken
from fiftyone_regioncap.captioning.views import nested_views
from fiftyone_regioncap.core.errors import BackendError, FatalError
from fiftyone_regioncap.core.types import Caption, Frame, Mask, RegionClip
from fiftyone_regioncap.models.endpoints import OPENAI_URL, Endpoint

DAM_MODEL = "describe_anything_model"
OUTLINE_COLOR = (255, 0, 0)

FATAL_TRIES = 3
"""Errors in a row that every request will meet, after which captioning stops."""

MARKS = {"length": "cut off", "content_filter": "filtered"}
"""Tags of captions that did not end by themselves, by the endpoint's reason."""

_SILENT = {
    "length": "the answer was cut off before it said anything; raise max_tokens",
    "content_filter": "the endpoint's content filter withheld the answer",
}

SHOWN_PROMPTS = {
    "outline": {
        "detailed": "Describe the object outlined in red in detail.",
        "short": "Describe the object outlined in red in one short sentence.",
        "attributes": (
            "List the visible attributes of the object outlined in red: its color, "
            "shape, material, texture and state."
        ),
    },
    "crop": {
        "detailed": "Describe the object in the middle in detail.",
        "short": "Describe the object in the middle in one short sentence.",
        "attributes": (
            "List the visible attributes of the object in the middle: its color, "
            "shape, material, texture and state."
        ),
    },
    "views": {
        "detailed": "Describe the object that fills the first of them in detail.",
        "short": "Describe the object that fills the first of them in one sentence.",
        "attributes": (
            "List the visible attributes of the object that fills the first of them: "
            "its color, shape, material, texture and state."
        ),
    },
}
"""For models that are shown pictures; several are the frames of a video."""


class OpenAICaptioner:
    """Describes regions by asking an endpoint.

    Args:
        base_url: Address of the endpoint, such as ``http://localhost:8000/v1``; None
            for the option, then ``$OPENAI_BASE_URL``, then OpenAI's own.
        options: Options of the requests.

    Raises:
        BackendError: When the address or the key cannot be used, or OpenAI's own
            endpoint is asked without a model.
    """

    def __init__(
        self, base_url: str | None = None, options: OpenAIOptions | None = None
    ) -> None:
        self.options = options = options or OpenAIOptions()
        base = base_url or options.base_url or os.environ.get("OPENAI_BASE_URL")
        if options.model is None and (base or OPENAI_URL) == OPENAI_URL:
            raise BackendError("name the endpoint's model with model=")
        self._model = options.model or DAM_MODEL
        dam = self._model == DAM_MODEL or "DAM" in self._model
        self._region: RegionView = options.region or ("alpha" if dam else "outline")
        self._endpoint = Endpoint(
            base or OPENAI_URL,
            api_key=options.api_key,
            timeout=options.timeout,
            retries=options.retries,
            insecure=options.insecure,
        )

    @classmethod
    def from_pretrained(
        cls,
        weights: str | None = None,
        *,
        device: str | None = None,
        options: OpenAIOptions | None = None,
    ) -> OpenAICaptioner:
        """Makes a captioner; its weights are wherever the endpoint ``weights`` is."""
        return cls(weights, options)

    @cached_property
    def info(self) -> CaptionerInfo:
        """Returns the captioner's name, model and needs."""
        return CaptionerInfo(
            name="openai",
            model=self._model,
            revision=version("fiftyone-regioncap"),
            license="the endpoint's",
            frames=self.options.frames,
            batch_size=2 * self.options.concurrency,
            prompts=self._prompts(self.options.frames),
        )

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order: see :class:`Captioner`."""
        return list(self.caption_stream(clips, prompt=prompt))

    def caption_stream(
        self,
        clips: Iterable[RegionClip],
        *,
        prompt: str | None = None,
        on_token: OnToken | None = None,
    ) -> Iterator[Caption]:
        """Describes each clip of a stream, in order, some of them at once.

        Args:
            clips: Clips to describe; the stream may be endless.
            prompt: Name of one of the prompts of :attr:`info`, or a text.
            on_token: Never called, as answers come whole.
        """
        source = Feeder(
            clips,
            lambda clip: self._caption(clip, prompt),
            workers=self.options.concurrency,
            ahead=2 * self.options.concurrency,
        )
        failures = 0
        with source:
            while (caption := source.take(wait=True)) is not None:
                if isinstance(caption, FatalError):
                    failures += 1
                    if failures == FATAL_TRIES:
                        raise caption
                    caption = Caption(error=str(caption))
                else:
                    failures = 0
                yield caption
            if source.error is not None:
                raise source.error

    def _caption(self, clip: RegionClip, prompt: str | None) -> Caption | FatalError:
        try:
            images = self._images(clip)
            named = self._prompts(len(images))
            text = named.get(prompt or "detailed", prompt or "")
            return self._ask(images, text, clip.label)
        except FatalError as error:
            return error
        except Exception as error:  # a clip of any kind of badness spoils no other
            return Caption(error=str(error) or type(error).__name__)

    def _prompts(self, images: int) -> Mapping[str, str]:
        if self._region != "alpha":
            return SHOWN_PROMPTS[self._region]
        if self.options.frames == 1:
            return IMAGE_PROMPTS
        return JOINT_IMAGE_PROMPTS if images == 1 else VIDEO_PROMPTS

    def _images(self, clip: RegionClip) -> list[str]:
        """Returns data URLs of the frames that show the object, spread evenly."""
        check_clip(clip)
        areas = [int(np.count_nonzero(mask)) for mask in clip.masks]
        shown = [number for number, area in enumerate(areas) if area]
        wanted = self.options.frames
        if wanted == 1 or self._region == "views":
            shown = [max(shown, key=lambda number: areas[number])]
        elif len(shown) > 1 and (self._region == "alpha" or len(shown) > wanted):
            # DAM's video prompt wants its number of frames, some twice if need be.
            steps = np.linspace(0, len(shown) - 1, wanted)
            shown = [shown[int(step)] for step in steps]
        return [
            url
            for number in shown
            for url in pictures(clip.frames[number], clip.masks[number], self._region)
        ]

    def _ask(self, images: list[str], text: str, label: str | None) -> Caption:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url}} for url in images
        ]
        if self._region == "views":
            text = f"These are {len(images)} cuts of one object, each wider. {text}"
        elif len(images) > 1 and self._region != "alpha":
            text = f"These are {len(images)} frames of a video in order. {text}"
        content.append({"type": "text", "text": text})
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.options.max_tokens,
            "temperature": self.options.temperature,
        }
        if self.options.confidence:
            body["logprobs"] = True
        answer = self._endpoint.chat(body)
        if not answer.text:
            raise BackendError(
                _SILENT.get(answer.finish or "", "the endpoint had nothing to say")
            )
        caption = caption_from_tokens(
            answer.text,
            [piece.replace(" ", SPACE) for piece, _ in answer.logprobs],
            [math.exp(value) for _, value in answer.logprobs],
            label=label,
            tokens=answer.tokens,
        )
        mark = MARKS.get(answer.finish or "")
        return replace(caption, tags=((mark, 1.0),)) if mark else caption


def pictures(frame: Frame, mask: Mask, region: RegionView) -> Iterator[str]:
    """Yields the region on its frame as data URLs: one, or one per nested view.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        mask: Object mask, bool (H, W), not empty.
        region: How the region is shown.
    """
    if region != "views":
        yield picture(frame, mask, region)
        return
    for view in nested_views(frame, mask, contexts="image", size=None).pictures:
        yield _data_url(Image.fromarray(view), "JPEG")


def picture(frame: Frame, mask: Mask, region: RegionView) -> str:
    """Returns the region on its frame as a data URL; not for nested views.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        mask: Object mask, bool (H, W), not empty.
        region: How the region is shown.
    """
    if region == "alpha":
        alpha = mask.astype(np.uint8) * np.uint8(255)
        return _data_url(Image.fromarray(np.dstack([frame, alpha])), "PNG")
    if region == "outline":
        marked = np.ascontiguousarray(frame).copy()
        width = max(2, round(max(mask.shape) / 250))
        outlines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(marked, outlines, -1, OUTLINE_COLOR, width)
        return _data_url(Image.fromarray(marked), "JPEG")
    x1, y1, x2, y2 = crop_window(mask)
    return _data_url(Image.fromarray(frame[y1:y2, x1:x2]), "JPEG")


def _data_url(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 92} if kind == "JPEG" else {}))
    encoded = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"
