"""Prompts of URECA, with the places of image and mask."""

from __future__ import annotations

from collections.abc import Sequence

IMAGE = "<image>"
MASK = "<mask>"
IMAGE_TOKEN = "<IMG_CONTEXT>"
MASK_TOKEN = "<MASK_CONTEXT>"
END = "<|im_end|>"

TOKENS = (
    "<|im_start|>",
    END,
    "<img>",
    "</img>",
    IMAGE_TOKEN,
    MASK_TOKEN,
    MASK,
    "</mask>",
)
"""Texts that the tokenizer must encode as one token each."""

SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、"
    "清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The system message that all InternVL2.5 were trained with: who they are."""

PROMPTS = {
    "detailed": "Describe this region in the image.",
    "short": "Describe this region in the image shortly.",
    "long": "Please provide a detailed description of this region of the image.",
}
"""Questions by name; the first is the one of the paper's evaluation."""


def question(text: str) -> str:
    """Returns a text with places for image and mask."""
    if MASK in text:
        return text
    if IMAGE in text:
        return text.replace(IMAGE, f"{IMAGE}\n{MASK}", 1)
    return f"{IMAGE}\n{MASK}\n{text}"


def conversation(
    asked: str,
    image_tokens: int,
    mask_tokens: int,
    history: Sequence[tuple[str, str]] = (),
) -> str:
    """Returns the whole prompt.

    Args:
        asked: Question with :data:`IMAGE` and :data:`MASK`. An image placeholder is put
            before a first question without one, a mask placeholder is not; a second
            mask placeholder stays plain text.
        image_tokens: Number of tokens that represent the image.
        mask_tokens: Number of tokens that represent the mask.
        history: Earlier questions and their answers.
    """
    if not history and IMAGE not in asked:
        asked = f"{IMAGE}\n{asked}"
    text = f"<|im_start|>system\n{SYSTEM}{END}\n"
    for said, answer in history:
        text += f"<|im_start|>user\n{said}{END}\n<|im_start|>assistant\n{answer}{END}\n"
    text += f"<|im_start|>user\n{asked}{END}\n<|im_start|>assistant\n"
    text = text.replace(IMAGE, f"<img>{IMAGE_TOKEN * image_tokens}</img>", 1)
    return text.replace(MASK, f"{MASK}{MASK_TOKEN * mask_tokens}</mask>", 1)
