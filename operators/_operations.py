"""Operators that are made from the declared operations of the library."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.executor import ExecutionContext

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.schema import status_field
from fiftyone_regioncap.dataset.sequences import are_sequences
from fiftyone_regioncap.dataset.store import undisturbed
from fiftyone_regioncap.operations import OPERATIONS, Operation

from . import _forms, _running, _scope

_BUTTONS = {
    "propagate": ("animation", "prompts"),
    "caption": ("chat", "tracks"),
    "search_captions": ("manage_search", "captions"),
}
"""Operations with a button above the grid: its icon, and the fields that it needs."""

_ICONS = {
    "undo_captions": "undo",
    "propose": "auto_awesome",
    "find_shots": "content_cut",
    "propagate": "animation",
    "propagate_from": "start",
    "caption": "chat",
    "propagate_and_caption": "movie_filter",
    "caption_regions": "image_search",
    "dense_caption": "grid_view",
    "make_unique": "difference",
    "search_captions": "manage_search",
    "embed_captions": "scatter_plot",
    "embed_regions": "blur_on",
    "extract_facets": "category",
    "check_captions": "fact_check",
    "triage_captions": "rule",
    "evaluate_captions": "grading",
    "export": "file_download",
    "import_captions": "file_upload",
}
"""Icons of the operators in the App's browser."""


_NEXT = {
    "propose": "propagate_masks",
    "propagate": "caption_tracks",
    "propagate_from": "caption_tracks",
}
"""Operators that mostly follow on operations."""

_CAPTIONING = {
    "caption",
    "propagate_and_caption",
    "caption_regions",
    "dense_caption",
    "make_unique",
    "compare_captions",
    "import_captions",
    "check_captions",
    "triage_captions",
}
"""Operations after which captions are reviewed."""


class OperationOperator(foo.Operator):
    """An operator that runs one operation over a target view.

    Attributes:
        operation: Operation that it runs.
    """

    operation: Operation

    @property
    def config(self) -> foo.OperatorConfig:
        """Configuration of the operator in the App."""
        return foo.OperatorConfig(
            name=self.operation.operator,
            label=self.operation.label,
            description=self.operation.summary,
            dynamic=True,
            icon=_ICONS.get(self.operation.name, "subtitles"),
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def resolve_placement(self, ctx: Any) -> types.Placement | None:
        """Returns a button above the grid for what is wanted often, where it can be."""
        icon, needed = _BUTTONS.get(self.operation.name, (None, ""))
        media = None if ctx.dataset is None else ctx.dataset.media_type
        if icon is None or media not in self.operation.media:
            return None
        if not _forms.known_fields(ctx, needed):
            return None
        button = types.Button(label=self.operation.label, icon=icon, prompt=True)
        return types.Placement(types.Places.SAMPLES_GRID_ACTIONS, button)

    def resolve_input(self, ctx: Any) -> types.Property:
        """Returns the form."""
        inputs = types.Object()
        media = None if ctx.dataset is None else ctx.dataset.media_type
        if media == "image" and are_sequences(ctx.view):
            media = "video" if "video" in self.operation.media else media
        if media in self.operation.media or not self.operation.media:
            try:
                _forms.ask(inputs, ctx, self.operation)
            except RegionCapError as error:
                _forms.refuse(inputs, str(error))
        else:
            wanted = self.operation.media[0]
            _forms.refuse(inputs, f"This operator needs a dataset of {wanted}s")
        return types.Property(inputs, view=types.View(label=self.operation.label))

    def execute(self, ctx: Any) -> Any:
        """Runs the operation; see :func:`operators._running.run`."""

        def job(listener: ProgressListener, cancel: threading.Event) -> Any:
            # Here, and not before, so that what is wrong is said in words.
            _forms.require_known(self.operation, ctx.params)
            values = _forms.parameters(self.operation, ctx.params)
            samples = None
            if self.operation.media:
                samples = _scope.samples(ctx, self.operation)
            outcome = api.call(self.operation, samples, values, listener, cancel)
            if "propagate" in self.operation.stages:
                _let_annotate(ctx.dataset, values.get("prompts", "frames.prompts"))
            return outcome

        afterwards = AFTERWARDS.get(self.operation.name)
        quiet = self.operation.name == "search_captions"
        following = partial(_next_steps, ctx, self)
        return _running.run(ctx, job, afterwards, following, quiet)

    def resolve_output(self, ctx: Any) -> types.Property:
        """Returns the summary."""
        view = types.View(label=self.operation.label)
        return types.Property(_running.outputs(), view=view)

    def __call__(
        self,
        *args: Any,
        delegate: bool = False,
        **params: Any,
    ) -> Any:
        """Runs the operator from Python.

        Args:
            *args: As the SDK's function takes them, the dataset or view first.
            delegate: Whether to queue it for ``fiftyone delegated launch``.
            **params: As the SDK's function takes them.

        Returns:
            What the SDK's function returns, or FiftyOne's execution result when
            delegated.
        """
        if delegate:
            view = args[0].view()
            return foo.execute_operator(
                self.uri,
                {"view": view},
                params={**self._defaults(view, params), **params},
                request_delegation=True,
            )
        function = getattr(api, self.operation.name)
        return function(*args, **params)

    def _defaults(self, view: Any, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the form's default values; FiftyOne fills them in only in the App."""
        context = ExecutionContext(
            {
                "dataset_name": view.dataset_name,
                "view": view._serialize(),
                "params": dict(params),
            },
            operator_uri=self.uri,
        )
        inputs = self.resolve_input(context).type.properties
        return {
            name: prop.default
            for name, prop in inputs.items()
            if prop.default is not None and name != "view_target"
        }


def _next_steps(
    ctx: Any, operator: OperationOperator, outcome: Any
) -> list[types.Button]:
    """Returns buttons for what people do next, and for what failed."""
    name, plugin = operator.operation.name, operator.plugin_name
    steps = []
    if name in _NEXT:
        (following,) = (o for o in OPERATIONS.values() if o.operator == _NEXT[name])
        uri = f"{plugin}/{following.operator}"
        steps.append(types.Button(label=following.label, operator=uri, prompt=True))
    elif name in _CAPTIONING:
        panels = {"region_captions": "Review", "caption_search": "Search"}
        if ctx.current_sample is not None:  # beside it, there is no search
            del panels["caption_search"]
        for panel, label in panels.items():
            params = {"name": panel, "layout": "horizontal"}
            uri = "@voxel51/operators/open_panel"
            steps.append(types.Button(label=label, operator=uri, params=params))
    failures = getattr(outcome, "failures", ())
    failed = {one.sample_id for one in failures if getattr(one, "sample_id", None)}
    if failed and ctx.dataset is not None:
        params = {"view": ctx.dataset.select(sorted(failed))._serialize()}
        label = f"Show {len(failed)} failed"
        uri = "@voxel51/operators/set_view"
        steps.append(types.Button(label=label, operator=uri, params=params))
    return steps


def _show_found(ctx: Any, results: Any) -> Iterator[Any]:
    """Shows what a search found in place of the view."""
    found = "Nothing found"
    if results.hits:
        from fiftyone_regioncap.search.results import view_of

        values = _forms.parameters(OPERATIONS["search_captions"], ctx.params)
        options, *_ = OPERATIONS["search_captions"].parse(values)
        yield ctx.ops.set_view(view_of(results, options))
        found = results.tally()
    if results.note:
        found = f"{found}. {results.note}"
    yield ctx.ops.notify(found, variant="success" if results.hits else "warning")


def _show_map(ctx: Any, summary: Any) -> Iterator[Any]:
    """Opens a map beside the captions that are on it."""
    yield ctx.ops.reload_dataset()
    # Not by its name: the App knows no view that was saved since it was opened.
    yield ctx.ops.set_view(ctx.dataset.load_saved_view(summary.view))
    yield ctx.ops.open_panel("Embeddings", layout="horizontal")


def _show_worst(ctx: Any, result: Any) -> Iterator[Any]:
    """Shows the captions with the lowest scores."""
    yield ctx.ops.reload_dataset()
    if result.each:
        yield ctx.ops.set_view(result.worst())


def _show_benchmark(ctx: Any, result: Any) -> Iterator[Any]:
    """Opens the benchmark's dataset, at the items with the lowest scores."""
    if result.dataset is None:
        return
    if ctx.dataset is None or ctx.dataset.name != result.dataset:
        yield ctx.ops.open_dataset(result.dataset)
        return
    yield ctx.ops.reload_dataset()
    if getattr(result, "each", None):
        yield ctx.ops.set_view(result.worst())


def _let_annotate(dataset: fo.Dataset, prompts: str) -> None:
    """Lets FiftyOne's Annotate correct the tracks.

    Annotate shows a field once it has a schema for it, which a person would have to
    set up by hand, and of labels of one instance only one, so prompts are hidden.
    """
    undisturbed(dataset.reload)
    for field in fields.track_fields(dataset):
        written = dataset.has_field(status_field(field))
        if written and field not in (dataset.label_schemas or {}):
            schema = dataset.generate_label_schemas(field, scan_samples=False)
            dataset.update_label_schema(field, schema)
            dataset.activate_label_schemas(field)
    if dataset.app_config.active_fields is None:
        labels = set(dataset._get_label_fields()) - {prompts}
        dataset.app_config.active_fields = fo.ActiveFields(
            exclude=False, paths=sorted(labels)
        )
        dataset.save()


def _annotate_anew(ctx: Any, summary: Any) -> Iterator[Any]:
    """Opens the sample anew, as Annotate shows the labels that it had before."""
    if ctx.current_sample is not None:
        yield ctx.ops.close_sample()
        where = {"id": ctx.current_sample, "mode": "annotate"}
        yield ctx.trigger("open_sample", where)


AFTERWARDS: Mapping[str, _running.Afterwards] = {
    "propagate_from": _annotate_anew,
    "search_captions": _show_found,
    "embed_captions": _show_map,
    "evaluate_captions": _show_worst,
    "prepare_benchmark": _show_benchmark,
    "run_benchmark": _show_benchmark,
    "score_benchmark": _show_benchmark,
}
"""What the App shows once an operation is done, beside its summary."""


def operator_of(operation: Operation) -> type[OperationOperator]:
    """Returns the class of the operator for an operation."""
    name = "".join(part.capitalize() for part in operation.operator.split("_"))
    return type(
        name,
        (OperationOperator,),
        {"operation": operation, "__doc__": operation.summary, "__module__": __name__},
    )


OPERATION_OPERATORS = tuple(map(operator_of, OPERATIONS.values()))
