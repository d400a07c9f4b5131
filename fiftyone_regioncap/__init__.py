"""Turns videos into FiftyOne datasets of tracked, described objects.

import fiftyone_regioncap as regioncap

regioncap.propagate(view, prompts="frames.prompts")
regioncap.caption(view)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fiftyone_regioncap.__about__ import __version__

if TYPE_CHECKING:
    from fiftyone_regioncap.sdk import (
        caption,
        caption_regions,
        propagate,
        propagate_and_caption,
        propose,
    )

__all__ = [
    "__version__",
    "caption",
    "caption_regions",
    "propagate",
    "propagate_and_caption",
    "propose",
]


def __getattr__(name: str) -> object:
    """Imports FiftyOne and torch only once something is used."""
    if name in __all__:
        return getattr(importlib.import_module("fiftyone_regioncap.sdk"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
