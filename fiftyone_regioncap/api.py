"""The functions that people call from Python; shell and App call the same.

Each is made from its declaration in :mod:`fiftyone_regioncap.operations`; what does the
work is named there, and found below where it has to be put together.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import OptionField, fields_of, unknown
from fiftyone_regioncap.core.progress import ProgressListener, progress_listener
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.operations import OPERATIONS, Operation
from fiftyone_regioncap.system import database

if TYPE_CHECKING:
    from fiftyone_regioncap.analysis.checks import CheckSummary, TriageSummary
    from fiftyone_regioncap.analysis.facets import FacetSummary
    from fiftyone_regioncap.analysis.options import (
        CheckOptions,
        FacetOptions,
        TriageOptions,
    )
    from fiftyone_regioncap.evaluation.caption_runs import CaptionEvaluation
    from fiftyone_regioncap.evaluation.options import EvaluateOptions
    from fiftyone_regioncap.search import SearchResults
    from fiftyone_regioncap.search.options import EmbedCaptionsOptions, SearchOptions
    from fiftyone_regioncap.visualization.maps import MapSummary

Model: TypeAlias = Any
"""A specification of a model, or a model that is loaded."""


def call(
    operation: Operation,
    samples: Any,
    values: Mapping[str, Any],
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Any:
    """Runs an operation.

    Args:
        operation: What to do.
        samples: A dataset or a view.
        values: Options and models by name; those that are absent have the default.
        progress: Whether to draw a progress bar, or what is called with each event.
        cancel: Set it to stop after the step at hand.

    Returns:
        What was done, failures included.

    Raises:
        OptionError: When an option is unknown or has a value that it can't have.
        BackendError: When a model can't run here.
        FieldError: When a field is absent or of the wrong kind.
        Cancelled: When ``cancel`` was set; what was written stays.
    """
    options, models = operation.parse(values)
    database.ensure()
    with progress_listener(progress) as listener:
        if operation.run is not None:
            run = resolve(operation.run)
            return run(samples, options, **models, listener=listener, cancel=cancel)
        stages = {
            stage: options if group is None else getattr(options, group)
            for stage, group in operation.stages.items()
        }
        run = resolve("fiftyone_regioncap.jobs.executors.local:run_stages")
        name = operation.name
        return run(samples, name, stages, models, listener=listener, cancel=cancel)


def function_of(operation: Operation) -> Callable[..., Any]:
    """The SDK's function for an operation, with signature and documentation."""
    signature = inspect.Signature(_parameters(operation))

    def function(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in signature.parameters:
                known = operation.parameters()
                raise OptionError(f"{operation.name}: {unknown(name, known)}")
        given = dict(signature.bind(*args, **kwargs).arguments)
        samples = given.pop("samples")
        progress, cancel = given.pop("progress", True), given.pop("cancel", None)
        return call(operation, samples, given, progress, cancel)

    function.__name__ = function.__qualname__ = operation.name
    function.__doc__ = _documentation(operation)
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__module__ = __name__
    return function


def _parameters(operation: Operation) -> list[inspect.Parameter]:
    positional, keyword = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    fields = {field.name: field for field in operation.fields}
    first = [fields.pop(name) for name in operation.positional]
    own = [_parameter(field, positional) for field in first]
    own += [_parameter(field, keyword) for field in fields.values()]
    for model in operation.models:
        own += [
            inspect.Parameter(name, keyword, default=default, annotation=hint)
            for name, default, hint in (
                (model.name, model.default, "str | Model | None"),
                (f"{model.name}_weights", None, "str | None"),
                (f"{model.name}_options", None, "Mapping[str, Any] | None"),
            )
        ]
    if operation.loading is not None:
        own += [_parameter(field, keyword) for field in fields_of(operation.loading)]
    return [
        inspect.Parameter("samples", positional, annotation="SampleCollection"),
        *own,
        inspect.Parameter("progress", keyword, default=True, annotation="bool"),
        inspect.Parameter("cancel", keyword, default=None, annotation="Event | None"),
    ]


def _parameter(field: OptionField, kind: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.required else field.default
    return inspect.Parameter(field.name, kind, default=default, annotation=field.type)


def _documentation(operation: Operation) -> str:
    """A Google docstring."""
    lines = [operation.summary, "", "Args:", "    samples: A dataset or a view."]
    fields = operation.fields
    if operation.loading is not None:
        fields += fields_of(operation.loading)
    lines += [f"    {field.name}: {field.documentation}" for field in fields]
    for model in operation.models:
        lines += [
            f"    {model.name}: {model.help} Give a name, a model that is loaded, or "
            f"None; default {model.default!r}.",
            f"    {model.name}_weights: Folder, file or hub id of its weights.",
            f"    {model.name}_options: Its own options by name.",
        ]
    lines += [
        "    progress: Whether to draw a progress bar, or what is called with events.",
        "    cancel: Set it to stop after the step at hand; what was written stays.",
        "",
        "Returns:",
        "    What was done, failures included.",
    ]
    return "\n".join(lines)


def __getattr__(name: str) -> Any:
    """Makes the function of an operation when it is first used."""
    if name not in OPERATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = function_of(OPERATIONS[name])
    return globals()[name]


def _search(samples: Any, options: SearchOptions, **run: Any) -> SearchResults:
    from fiftyone_regioncap.search import search

    results = search(samples, options, progress=_bar(run))
    if options.save is not None:
        samples._root_dataset.save_view(
            options.save, shown(results, options), overwrite=True
        )
    return results


def shown(results: SearchResults, options: SearchOptions) -> Any:
    """The view of what a search found, as its options want it."""
    view = results.view(options.score_field)
    return results.captions.alone(view) if options.alone and results.hits else view


def _embed_captions(
    samples: Any, options: EmbedCaptionsOptions, **run: Any
) -> MapSummary:
    from fiftyone_regioncap.visualization.maps import embed_captions

    return embed_captions(samples, options, progress=_bar(run))


def _extract_facets(samples: Any, options: FacetOptions, **run: Any) -> FacetSummary:
    from fiftyone_regioncap.analysis.facets import extract_facets

    return extract_facets(samples, options)


def _check_captions(samples: Any, options: CheckOptions, **run: Any) -> CheckSummary:
    from fiftyone_regioncap.analysis.checks import check_captions

    return check_captions(samples, options)


def _triage_captions(samples: Any, options: TriageOptions, **run: Any) -> TriageSummary:
    from fiftyone_regioncap.analysis.checks import triage

    return triage(samples, options)


def _evaluate_captions(
    samples: Any, options: EvaluateOptions, **run: Any
) -> CaptionEvaluation:
    from fiftyone_regioncap.evaluation.caption_runs import evaluate_captions
    from fiftyone_regioncap.search.embedding import DEFAULT_MODEL

    same = options.captions == options.references
    attribute = options.caption_attribute or ("source_caption" if same else "caption")
    values = vars(options) | {
        "caption_attribute": attribute,
        "model": options.model or DEFAULT_MODEL,
    }
    result = evaluate_captions(samples, **_without(values, "output"))
    if options.output is not None:
        result.write(options.output)
    return result


def _bar(run: Mapping[str, Any]) -> bool:
    return run["listener"] is not None and sys.stderr.isatty()


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
