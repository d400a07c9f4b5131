"""What the operators on a field of captions have in common: form and summary."""

from __future__ import annotations

from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from fiftyone_regioncap.dataset.caption_fields import caption_fields

from . import _forms

NO_CAPTIONS = "No field holds captions yet. Run caption_tracks first"


class CaptionOperator(foo.Operator):
    """An operator that looks at the captions of a view and sums up what it found.

    Attributes:
        name: as it is called.
        label: as the App shows it.
        description: one line on what it does.
        action: a verb for the target picker.
        found: over the summary, which ``execute`` gives as ``"summary"``.
    """

    name: str
    label: str
    description: str
    action: str
    found: str

    @property
    def config(self) -> foo.OperatorConfig:
        """How the operator shows itself and may be run."""
        return foo.OperatorConfig(
            name=self.name,
            label=self.label,
            description=self.description,
            dynamic=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def ask(self, inputs: types.Object, ctx: Any, choices: list[str]) -> None:
        """Adds the operator's own inputs; the target is there already.

        Args:
            inputs: the form.
            ctx: the execution context.
            choices: fields of captions, at least one.
        """
        raise NotImplementedError

    def problem(self, ctx: Any, choices: list[str]) -> str | None:
        """Why it can't run on the dataset, or None; ``choices`` may be empty."""
        return None if choices else NO_CAPTIONS

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form."""
        inputs = types.Object()
        choices = caption_fields(ctx.dataset)
        problem = self.problem(ctx, choices)
        if problem is None:
            _forms.target(inputs, ctx, self.action)
            self.ask(inputs, ctx, choices)
        else:
            _forms.refuse(inputs, problem)
        return types.Property(inputs, view=types.View(label=self.label))

    def resolve_output(self, ctx: Any) -> types.Property:
        """What was found."""
        shown = types.Object()
        shown.str("summary", label=self.found, view=types.MarkdownView())
        return types.Property(shown, view=types.View(label=self.label))
