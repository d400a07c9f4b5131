"""What the operators have in common: target, form, job, progress, summary."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.executor import ExecutionContext

from fiftyone_regioncap.core.progress import ProgressListener

from . import _forms, _running


class JobOperator(foo.Operator):
    """An operator that runs one job of the library over a target view.

    Attributes:
        name: as it is called.
        label: as the App shows it.
        description: one line on what it does.
        action: a verb for the target picker.
        media: the media types of datasets it can run on.
    """

    name: str
    label: str
    description: str
    action: str
    media: tuple[str, ...] = ("video", "group")

    @property
    def config(self) -> foo.OperatorConfig:
        """How the operator shows itself and may be run."""
        return foo.OperatorConfig(
            name=self.name,
            label=self.label,
            description=self.description,
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the operator's own inputs to the form.

        Returns:
            why the operator can't run on this dataset; None when it can.
        """
        raise NotImplementedError

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> _running.Outcome:
        """Calls the library, with defaults for parameters that are not given."""
        raise NotImplementedError

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form."""
        inputs = types.Object()
        media = None if ctx.dataset is None else ctx.dataset.media_type
        if media in self.media:
            _forms.target(inputs, ctx, self.action)
            problem = self.ask(inputs, ctx)
        else:
            problem = f"This operator needs a dataset of {self.media[0]}s"
        if problem is not None:
            _forms.refuse(inputs, problem)
        return types.Property(inputs, view=types.View(label=self.label))

    def execute(self, ctx: Any) -> Any:
        """Runs the job; see :func:`operators._running.run`."""
        params, samples = dict(ctx.params), ctx.target_view()
        return _running.run(
            ctx, lambda listener, cancel: self.job(samples, params, listener, cancel)
        )

    def resolve_output(self, ctx: Any) -> types.Property:
        """The summary."""
        return types.Property(_running.outputs(), view=types.View(label=self.label))

    def __call__(
        self, sample_collection: Any, *, delegate: bool = False, **params: Any
    ) -> Any:
        """Runs the operator from Python.

        Args:
            sample_collection: a dataset or a view.
            delegate: whether to queue it for ``fiftyone delegated launch``.
            **params: as in the form; those not given have the form's defaults.

        Returns:
            the job's summary, such as :class:`fiftyone_regioncap.jobs.Summary`, or
            FiftyOne's execution result when delegated.
        """
        if delegate:
            view = sample_collection.view()
            return foo.execute_operator(
                self.uri,
                {"view": view},
                params={**self._defaults(view, params), **params},
                request_delegation=True,
            )
        return self.job(sample_collection, params, True, None)

    def _defaults(self, view: Any, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the form would send untouched; FiftyOne fills it in only in the App."""
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
