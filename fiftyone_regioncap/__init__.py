"""Turns videos into FiftyOne datasets of tracked, described objects.

import fiftyone_regioncap as regioncap

regioncap.propagate(view, prompts="frames.prompts")
regioncap.caption(view)
regioncap.search_captions(view, "red car turning left")
"""

from __future__ import annotations

import importlib

from fiftyone_regioncap.__about__ import __version__

__all__ = [
    "__version__",
    "caption",
    "caption_regions",
    "check_captions",
    "compare_captions",
    "conform",
    "delete_track",
    "dense_caption",
    "embed_captions",
    "embed_regions",
    "evaluate_captions",
    "export",
    "extract_facets",
    "find_shots",
    "import_captions",
    "make_unique",
    "merge_tracks",
    "move_masks",
    "plan",
    "prepare_benchmark",
    "propagate",
    "propagate_and_caption",
    "propagate_from",
    "propose",
    "renumber_track",
    "run_benchmark",
    "score_benchmark",
    "search_captions",
    "split_track",
    "sweep_benchmark",
    "train",
    "triage_captions",
    "undo_captions",
    "write_hierarchy",
]


def __getattr__(name: str) -> object:
    """Imports an operation or a helper when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = "analysis.hierarchy" if name == "write_hierarchy" else "api"
    return getattr(importlib.import_module(f"{__name__}.{where}"), name)
