"""Parsing of chat requests with masked images.

An image is a PNG whose alpha channel is the mask, as the authors' server takes it:
where alpha is above 0 is the object; the colors below count as they are stored.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fiftyone_regioncap.captioning.dam import prompts
from fiftyone_regioncap.models.sampling import Sampling

MODEL_ALIAS = "describe_anything_model"
"""The name that clients of the authors' server use for whatever it runs."""

_DATA_URL = re.compile(r"data:image/(?:png|jpg|jpeg);base64,")


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: HTTP status that OpenAI's API has for the error.
        param: Name of the invalid field.
        detail: Message for a role that doesn't exist, as the authors' server words it.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        detail: list[dict[str, Any]] | None = None,
    ) -> None:
        # What is repeated of the request may hold half a character.
        super().__init__(message.encode(errors="backslashreplace").decode())
        self.status = status
        self.param = param
        self.detail = detail


@dataclass(frozen=True)
class RequestLimits:
    """Sets limits of a request.

    Attributes:
        body_bytes: Maximum size of the whole request in bytes.
        body_seconds: Maximum time for the whole request to arrive, in seconds.
        block_seconds: Maximum time without a byte of the request, in seconds.
        image_pixels: Maximum number of pixels of each image.
        decoded_pixels: Maximum number of pixels of all images decoded at once, over all
            requests.
        max_new_tokens: Maximum number of tokens of an answer; requests for more get
            that many.
        stops: Maximum number of stop sequences.
    """

    body_bytes: int = 64 << 20
    body_seconds: float = 300.0
    block_seconds: float = 30.0
    image_pixels: int = 64_000_000
    decoded_pixels: int = 64_000_000
    max_new_tokens: int = 512
    stops: int = 4


@dataclass(frozen=True)
class ChatRequest:
    """Represents a question about one object.

    Attributes:
        model: Name of the requested model.
        images: RGBA images with the mask in the alpha channel; not decoded yet, only
            their headers are read.
        text: Text of all system and user messages, joined.
        sampling: Sampling settings.
        max_new_tokens: Maximum number of tokens of the answer.
        stop: Stop sequences, before which the answer ends.
        stream: Whether the answer is streamed.
        usage: Whether a stream ends with token counts.
        logprobs: Whether the tokens' log probabilities are returned.
    """

    model: str
    images: list[Image.Image]
    text: str
    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    logprobs: bool

    @property
    def pixels(self) -> int:
        """Returns the number of pixels of the largest image."""
        return max((image.width * image.height for image in self.images), default=0)

    def end(self, text: str) -> int | None:
        """Returns where the first stop sequence begins in a text; None without one."""
        found = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        return min(found, default=None)

    def query(self, joint: bool) -> str:
        """Returns the text with its image tags.

        Args:
            joint: Whether the model handles both images and videos.

        Raises:
            RequestError: When the images are too few or too many for it.
        """
        count = len(self.images)
        if not count:
            raise RequestError("No image with mask found in input messages.")
        try:
            text = prompts.bare_text(self.text)
        except ValueError as error:
            raise RequestError(str(error)) from error
        if not joint and count != 1:
            raise RequestError("Only one image with mask is supported")
        if joint and count not in (1, prompts.VIDEO_FRAMES):
            raise RequestError(
                f"Only 1 image and video (with {prompts.VIDEO_FRAMES} frames) are "
                f"supported, but {count} images are provided"
            )
        return prompts.query(text, count, joint)


def parse(
    body: Mapping[str, Any],
    models: frozenset[str],
    defaults: Sampling,
    limits: RequestLimits,
    *,
    system: bool = False,
) -> ChatRequest:
    """Reads a request; images are counted and measured, but not decoded.

    Args:
        body: JSON body of the request.
        models: Names of the models that this server answers to.
        defaults: Default sampling settings, for fields that the request omits.
        limits: Limits of the request.
        system: Whether system messages are allowed; their text is put before the
            question.

    Raises:
        RequestError: When the request is invalid; the message says why.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise RequestError("messages must be a list", param="messages")
    roles = ("user", "assistant", *(("system", "developer") if system else ()))
    before, text, urls = "", "", []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in roles:
            raise _role_error(number, role)
        if role == "assistant":
            continue
        said, shown = _content(message.get("content"))
        if role == "user":
            text += said
            urls += shown
        elif shown:
            raise RequestError("images belong to the user", param="messages")
        else:
            before += f"{said.strip()}\n"
    if len(urls) > prompts.VIDEO_FRAMES:
        raise RequestError(f"more than {prompts.VIDEO_FRAMES} images")
    model = body.get("model")
    if not isinstance(model, str) or model not in models:
        raise RequestError(
            "The endpoint is configured to use the model checkpoint, but the request "
            f"model is {str(model)[:100]}",
            status=404,
            param="model",
        )
    for name in ("n", "num_beams"):
        if body.get(name) not in (None, 1):
            raise RequestError(f"{name} must be 1: one answer, no beams", param=name)
    wanted = body.get("max_completion_tokens")
    if wanted is None:
        wanted = body.get("max_tokens")
    options = body.get("stream_options")
    return ChatRequest(
        model=model,
        images=[_image(url, limits) for url in urls],
        text=_checked(f"{before}{text}" if before.strip() else text, "messages"),
        sampling=_sampling(body, defaults),
        max_new_tokens=min(
            _whole(wanted, "max_tokens", limits.max_new_tokens, at_least=1),
            limits.max_new_tokens,
        ),
        stop=_stop(body.get("stop"), limits),
        stream=_flag(body, "stream"),
        usage=isinstance(options, dict) and _flag(options, "include_usage"),
        logprobs=_flag(body, "logprobs"),
    )


def decode(image: Image.Image) -> Image.Image:
    """Decodes an image of a request.

    Raises:
        RequestError: When it is damaged.
    """
    try:
        image.load()
    # Damaged files raise errors of many kinds.
    except Exception as error:
        raise RequestError(f"an image cannot be decoded: {error}") from error
    return image


def _role_error(number: int, role: object) -> RequestError:
    if isinstance(role, float | list | dict):
        role = str(role)[:100]
    if isinstance(role, str):
        role = role.encode(errors="backslashreplace").decode()
    roles = "'user' or 'assistant'"
    message = f"Input should be {roles}"
    detail = {
        "type": "literal_error",
        "loc": ["body", "messages", number, "role"],
        "msg": message,
        "input": role,
        "ctx": {"expected": roles},
    }
    return RequestError(
        f"messages.{number}.role: {message}", param="messages", detail=[detail]
    )


def _content(content: object) -> tuple[str, list[str]]:
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise RequestError("content must be a text or a list", param="messages")
    text, urls = "", []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            urls.append(str(part["image_url"].get("url")))
        else:
            raise RequestError(
                "parts of content are of type text or image_url", param="messages"
            )
    return text, urls


def _image(url: str, limits: RequestLimits) -> Image.Image:
    if url.startswith(("http://", "https://")):
        raise RequestError(
            "this server fetches nothing: send images as data:image/png;base64,..."
        )
    prefix = _DATA_URL.match(url)
    if prefix is None:
        raise RequestError(f"Invalid image url: {url.split(',')[0][:80]},...")
    try:
        content = base64.b64decode(url[prefix.end() :], validate=True)
        # Only the formats that the URL may name: Pillow knows many more.
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        if image.width * image.height > limits.image_pixels:
            raise RequestError(
                f"an image has {image.width}x{image.height} pixels; send at most "
                f"{limits.image_pixels}",
                status=413,
            )
    except RequestError:
        raise
    # Damaged headers raise errors of many kinds.
    except Exception as error:
        raise RequestError(f"an image cannot be decoded: {error}") from error
    if image.mode != "RGBA":
        raise RequestError(f"Image mode is {image.mode}, but it should be RGBA")
    return image


def _sampling(body: Mapping[str, Any], defaults: Sampling) -> Sampling:
    try:
        return Sampling(
            temperature=_number(
                body.get("temperature"), "temperature", defaults.temperature
            ),
            top_k=_whole(body.get("top_k"), "top_k", defaults.top_k),
            top_p=_number(body.get("top_p"), "top_p", defaults.top_p),
            seed=_whole(body.get("seed"), "seed", defaults.seed),
        )
    except ValueError as error:
        raise RequestError(str(error)) from error


def _number(value: Any, name: str, default: Any, at_least: float = -(2**63)) -> Any:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{name} must be a number", param=name)
    if not at_least <= value < 2**63:
        raise RequestError(f"{name} is out of range", param=name)
    return value


def _whole(value: Any, name: str, default: int, at_least: float = -(2**63)) -> int:
    number = _number(value, name, default, at_least)
    if number != int(number):
        raise RequestError(f"{name} must be a whole number", param=name)
    return int(number)


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", param=name)
    return bool(value)


def _stop(value: Any, limits: RequestLimits) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(x, str) and x for x in stops):
        raise RequestError("stop must be a text or a list of texts", param="stop")
    if len(stops) > limits.stops:
        raise RequestError(f"stop may be {limits.stops} texts", param="stop")
    return tuple(_checked(stop, "stop") for stop in stops)


def _checked(text: str, name: str) -> str:
    """Returns a text that can be written as UTF-8, which half a surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} has half a character: {error}", param=name
        ) from error
    return text
