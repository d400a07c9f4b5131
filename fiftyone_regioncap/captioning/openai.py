"""Captions from an OpenAI-compatible endpoint: a GPU elsewhere, or someone's service.

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
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, TypeAlias, get_args

import cv2
import numpy as np
from PIL import Image

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.confidence import content_minimum, short_label
from fiftyone_regioncap.captioning.dam.processing import crop_window
from fiftyone_regioncap.captioning.dam.prompts import (
    IMAGE_PROMPTS,
    JOINT_IMAGE_PROMPTS,
    VIDEO_PROMPTS,
)
from fiftyone_regioncap.captioning.feeding import Feeder
from fiftyone_regioncap.captioning.streaming import OnToken
from fiftyone_regioncap.captioning.views import nested_views
from fiftyone_regioncap.core.errors import BackendError, PromptError
from fiftyone_regioncap.core.types import Caption, Frame, Mask, RegionClip
from fiftyone_regioncap.models.endpoints import Endpoint

Region: TypeAlias = Literal["alpha", "outline", "crop", "views"]
"""How the region is shown: mask as alpha, outlined in red, cut out with context, or as
nested views, cut out several times with more and more context."""

DEFAULT_URL = "https://api.openai.com/v1"
DAM_MODEL = "describe_anything_model"
OUTLINE_COLOR = (255, 0, 0)
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
    """Asks an endpoint about each region.

    Args:
        base_url: such as ``http://gpu:8000/v1``; None for ``$OPENAI_BASE_URL``, else
            OpenAI's own.
        model: as the endpoint calls it; may be left out for a DAM server.
        api_key: None for ``$OPENAI_API_KEY``; never stored, logged or shown.
        region: how the region is shown; None for alpha where the model is DAM, else
            outlined.
        frames: how many frames of a clip are shown; 8 for DAM's video checkpoint.
            Nested views are always of one frame, where the object is biggest.
        concurrency: requests at once.
        timeout: seconds to connect, and without a byte of the answer.
        retries: how often a request is sent again after time-outs, broken connections
            and statuses that may pass, each time after a longer pause.
        max_tokens: of a description.
        temperature: 0 for the most likely words.
        confidence: whether probabilities are asked for, which not all endpoints know.

    Raises:
        BackendError: when an option is impossible.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        region: Region | None = None,
        frames: int = 1,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 4,
        max_tokens: int = 512,
        temperature: float = 0.0,
        confidence: bool = False,
    ) -> None:
        base = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        if model is None and base == DEFAULT_URL:
            raise BackendError("name the endpoint's model with model=")
        self._model = model or DAM_MODEL
        if region is None:
            dam = self._model == DAM_MODEL or "DAM" in self._model
            region = "alpha" if dam else "outline"
        if region not in get_args(Region):
            raise BackendError(
                f"region {region!r}: choose one of {', '.join(get_args(Region))}"
            )
        if min(frames, max_tokens) < 1:
            raise BackendError("frames and max_tokens are 1 or more")
        self._region: Region = region
        self._frames = frames
        self._concurrency = concurrency
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._confidence = confidence
        self._endpoint = Endpoint(
            base,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            connections=concurrency,
        )

    @classmethod
    def from_pretrained(
        cls, weights: str | None = None, *, device: str | None = None, **options: Any
    ) -> OpenAICaptioner:
        """Makes a captioner; its weights are wherever the endpoint ``weights`` is."""
        return cls(**{"base_url": weights, **options})

    @cached_property
    def info(self) -> CaptionerInfo:
        """Name, model and needs."""
        return CaptionerInfo(
            name="openai",
            model=self._model,
            revision=version("fiftyone-regioncap"),
            license="the endpoint's",
            frames=self._frames,
            batch_size=2 * self._concurrency,
            prompts=self._prompts(self._frames),
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
            clips: may never end.
            prompt: the name of one of the prompts of :attr:`info`, or a text.
            on_token: not called, as answers come whole.
        """
        source = Feeder(
            clips,
            lambda clip: self._caption(clip, prompt),
            workers=self._concurrency,
            ahead=2 * self._concurrency,
        )
        with source:
            while (caption := source.take(wait=True)) is not None:
                yield caption
            if source.error is not None:
                raise source.error

    def _caption(self, clip: RegionClip, prompt: str | None) -> Caption:
        try:
            images = self._images(clip)
            named = self._prompts(len(images))
            text = named.get(prompt or "detailed", prompt or "")
            return self._ask(images, text, clip.label)
        except Exception as error:  # a clip of any kind of badness spoils no other
            return Caption(error=str(error) or type(error).__name__)

    def _prompts(self, images: int) -> Mapping[str, str]:
        if self._region != "alpha":
            return SHOWN_PROMPTS[self._region]
        if self._frames == 1:
            return IMAGE_PROMPTS
        return JOINT_IMAGE_PROMPTS if images == 1 else VIDEO_PROMPTS

    def _images(self, clip: RegionClip) -> list[str]:
        """Data URLs of the frames that show the object, spread evenly."""
        for frame, mask in zip(clip.frames, clip.masks, strict=True):
            if np.shape(mask) != np.shape(frame)[:2]:
                raise PromptError("a mask has another size than its frame")
        areas = [int(np.count_nonzero(mask)) for mask in clip.masks]
        shown = [number for number, area in enumerate(areas) if area]
        if not shown:
            raise PromptError("the mask is empty on every frame; mark the object")
        if self._frames == 1 or self._region == "views":
            shown = [max(shown, key=lambda number: areas[number])]
        elif len(shown) > 1 and (self._region == "alpha" or len(shown) > self._frames):
            # DAM's video prompt wants its number of frames, some twice if need be.
            steps = np.linspace(0, len(shown) - 1, self._frames)
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
            "max_tokens": self._max_tokens,
            "temperature": self._temperature,
        }
        if self._confidence:
            body["logprobs"] = True
        said, answer = self._endpoint.chat(body)
        text = said.strip()
        if not text:
            raise BackendError("the endpoint had nothing to say about this region")
        choice = answer["choices"][0]
        tokens = [
            (str(token.get("token", "")), math.exp(min(token["logprob"], 0.0)))
            for token in (choice.get("logprobs") or {}).get("content") or []
        ]
        pieces = [piece.replace(" ", "▁") for piece, _ in tokens]
        probabilities = [probability for _, probability in tokens]
        usage = answer.get("usage") or {}
        return Caption(
            text=text,
            label=label or short_label(text),
            confidence=sum(probabilities) / len(tokens) if tokens else None,
            min_confidence=content_minimum(pieces, probabilities),
            tokens=int(usage.get("completion_tokens", 0)),
        )


def pictures(frame: Frame, mask: Mask, region: Region) -> Iterator[str]:
    """The region on its frame as data URLs: one, or one a nested view.

    Args:
        frame: uint8 (H, W, 3).
        mask: bool (H, W), not empty.
        region: how it is shown.
    """
    if region != "views":
        yield picture(frame, mask, region)
        return
    for view in nested_views(frame, mask, contexts="image", size=None).pictures:
        yield _data_url(Image.fromarray(view), "JPEG")


def picture(frame: Frame, mask: Mask, region: Region) -> str:
    """The region on its frame as a data URL, for all ways but nested views.

    Args:
        frame: uint8 (H, W, 3).
        mask: bool (H, W), not empty.
        region: how it is shown.
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
