"""Turns videos into FiftyOne datasets of tracked, described objects.

import fiftyone_regioncap as regioncap

regioncap.propagate(view, prompts="frames.prompts")
regioncap.caption(view)
regioncap.search_captions(view, "red car turning left")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fiftyone_regioncap.__about__ import __version__

if TYPE_CHECKING:
    from fiftyone_regioncap.analysis.checks import check_captions
    from fiftyone_regioncap.analysis.facets import extract_facets
    from fiftyone_regioncap.analysis.hierarchy import write_hierarchy
    from fiftyone_regioncap.analysis.unique import make_unique
    from fiftyone_regioncap.api import (
        caption,
        caption_regions,
        embed_regions,
        propagate,
        propagate_and_caption,
        propose,
    )
    from fiftyone_regioncap.evaluation.caption_runs import evaluate_captions
    from fiftyone_regioncap.exporters import export, import_captions
    from fiftyone_regioncap.jobs.dense_captions import caption_everything
    from fiftyone_regioncap.search import search as search_captions
    from fiftyone_regioncap.visualization.maps import embed_captions

_WHERE = {
    "caption": "api:caption",
    "caption_everything": "jobs.dense_captions:caption_everything",
    "caption_regions": "api:caption_regions",
    "check_captions": "analysis.checks:check_captions",
    "embed_captions": "visualization.maps:embed_captions",
    "embed_regions": "api:embed_regions",
    "evaluate_captions": "evaluation.caption_runs:evaluate_captions",
    "export": "exporters:export",
    "extract_facets": "analysis.facets:extract_facets",
    "import_captions": "exporters:import_captions",
    "make_unique": "analysis.unique:make_unique",
    "propagate": "api:propagate",
    "propagate_and_caption": "api:propagate_and_caption",
    "propose": "api:propose",
    "search_captions": "search:search",
    "write_hierarchy": "analysis.hierarchy:write_hierarchy",
}

__all__ = [
    "__version__",
    "caption",
    "caption_everything",
    "caption_regions",
    "check_captions",
    "embed_captions",
    "embed_regions",
    "evaluate_captions",
    "export",
    "extract_facets",
    "import_captions",
    "make_unique",
    "propagate",
    "propagate_and_caption",
    "propose",
    "search_captions",
    "write_hierarchy",
]


def __getattr__(name: str) -> object:
    """Imports FiftyOne and torch only once something is used."""
    if name in _WHERE:
        module, attribute = _WHERE[name].split(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
