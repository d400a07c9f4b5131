"""Prompts of DAM, and the conversation around them."""

from __future__ import annotations

import re

IMAGE_TAG = "<image>"
"""Stands for one image in a query."""

VIDEO_FRAMES = 8
"""Frames that the video model was trained on."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

IMAGE_PROMPTS = {
    "detailed": "Describe the masked region in detail.",
    "short": "Describe the masked region briefly in one sentence.",
    "attributes": (
        "List the visible attributes of the masked region: its color, shape, "
        "material, texture and state."
    ),
}
"""Of the image checkpoint; ``detailed`` is the one it was published with."""

JOINT_IMAGE_PROMPTS = {
    "detailed": "Given the image above, describe the object in the masked region.",
    "short": (
        "Given the image above, describe the object in the masked region briefly in "
        "one sentence."
    ),
    "attributes": (
        "Given the image above, list the visible attributes of the object in the "
        "masked region: its color, shape, material, texture and state."
    ),
}
"""Of the image and video checkpoint, for one image."""

VIDEO_PROMPTS = {
    "detailed": (
        "Given the video in the form of a sequence of frames above, describe the "
        "object in the masked region in the video in detail."
    ),
    "short": (
        "Given the video in the form of a sequence of frames above, describe the "
        "object in the masked region in the video briefly in one sentence."
    ),
    "attributes": (
        "Given the video in the form of a sequence of frames above, list the visible "
        "attributes of the object in the masked region in the video: its color, shape, "
        "material, texture, state and motion."
    ),
}
"""Of the image and video checkpoint, for frames."""


def conversation(query: str) -> str:
    """Returns the conversation around a query, in the format called ``v1``."""
    return f"{SYSTEM} USER: {query} ASSISTANT:"


def query(text: str, images: int, joint: bool) -> str:
    """Puts the image tags before a text, as the checkpoint was trained.

    Args:
        text: Text of the query; returned as it is when it contains tags.
        images: Number of images in the prompt.
        joint: Whether the checkpoint handles both images and videos.
    """
    if IMAGE_TAG in text:
        return text
    tags = IMAGE_TAG * images
    if not joint:
        return f"{tags}\n{text}"
    return f"{'Image' if images == 1 else 'Video'}: {tags}\n{text}"


def bare_text(text: str) -> str:
    """Takes prefixes and leading tags off a query, as the authors' server does.

    Raises:
        ValueError: When a tag stands elsewhere than at the beginning.
    """
    text = text.strip().removeprefix("Image:").removeprefix("Video:").strip()
    text = re.sub(rf"^(?:{IMAGE_TAG})+", "", text)
    if IMAGE_TAG in text:
        raise ValueError(
            f"{IMAGE_TAG} should not be in other positions than the beginning of the "
            "query"
        )
    return text.strip()
