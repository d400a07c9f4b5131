"""The functions on captions with options as keywords, as the SDK has them.

Unlike the SDK's, they take models that are loaded.
"""

from __future__ import annotations

from typing import Any

from fiftyone_regioncap.analysis import checks, facets, unique
from fiftyone_regioncap.analysis.options import (
    CheckOptions,
    FacetOptions,
    TriageOptions,
    UniqueOptions,
)
from fiftyone_regioncap.evaluation import caption_runs
from fiftyone_regioncap.evaluation.options import EvaluateOptions
from fiftyone_regioncap.search import results
from fiftyone_regioncap.search.options import EmbedCaptionsOptions, SearchOptions
from fiftyone_regioncap.visualization import maps


def _split(model: Any) -> tuple[str | None, Any]:
    """Returns the name of a model, or a model that is loaded."""
    return (model, None) if isinstance(model, str | None) else (None, model)


def search(samples, query, *, model=None, **values):
    name, loaded = _split(model)
    options = SearchOptions(query, model=name, **values)
    return results.search(samples, options, model=loaded)


def embed_captions(samples, *, model=None, **values):
    name, loaded = _split(model)
    options = EmbedCaptionsOptions(model=name, **values)
    return maps.embed_captions(samples, options, model=loaded)


def check_captions(samples, *, model=None, **values):
    name, loaded = _split(model)
    options = CheckOptions(model=name, **values)
    return checks.check_captions(samples, options, model=loaded)


def triage(samples, **values):
    return checks.triage(samples, TriageOptions(**values))


def evaluate_captions(samples, references, *, model=None, **values):
    name, loaded = _split(model)
    options = EvaluateOptions(references, model=name, **values)
    return caption_runs.evaluate_captions(samples, options, model=loaded)


def extract_facets(samples, **values):
    return facets.extract_facets(samples, FacetOptions(**values))


def make_unique(samples, captions="captions", *, captioner=None, embedder=None, **own):
    options = UniqueOptions(captions, **own)
    return unique.make_unique(samples, options, captioner=captioner, embedder=embedder)
