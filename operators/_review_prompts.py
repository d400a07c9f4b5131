"""Dialogs in which the review panel asks a person."""

from __future__ import annotations

from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from fiftyone_regioncap.dataset import fields

from ._inputs import pick

NO_FIELD = "-"
"""Instead of the name of a field; no field can be called this."""

ORDER = {"view": "As in the view", "confidence": "Least sure first"}

JUDGE = {"no": "No", "open": "Yes", "blind": "Yes, without knowing which is which"}


class Prompt(foo.Operator):
    """Returns what a person answers in a dialog.

    Attributes:
        name: Name of the operator.
        label: Title of the dialog.
        submit: Label of its button.
        answers: Names of the parameters that are asked for.
    """

    name: str
    label: str
    submit: str
    answers: tuple[str, ...]

    @property
    def config(self) -> foo.OperatorConfig:
        """Configuration of the operator, which the App does not list."""
        return foo.OperatorConfig(
            name=self.name, label=self.label, dynamic=True, unlisted=True
        )

    def ask(self, inputs: types.Object, ctx: Any) -> None:
        """Adds the inputs; their values are given as the parameters."""
        raise NotImplementedError

    def resolve_input(self, ctx: Any) -> types.Property:
        """Returns the dialog."""
        inputs = types.Object()
        self.ask(inputs, ctx)
        view = types.PromptView(label=self.label, submit_button_label=self.submit)
        return types.Property(inputs, view=view)

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Returns the answers; the panel takes them from here."""
        return {name: ctx.params[name] for name in self.answers}


class EditCaption(Prompt):
    """Asks for another text."""

    name = "edit_caption"
    label = "Edit the caption"
    submit = "Save"
    answers = ("text",)

    def ask(self, inputs: types.Object, ctx: Any) -> None:
        """Shows the text."""
        inputs.str(
            "text",
            default=ctx.params.get("text"),
            required=True,
            label="Caption",
            view=types.TextFieldView(multiline=True, rows=6),
        )


class ChooseCaptions(Prompt):
    """Asks which captions to review, in what order, beside which others."""

    name = "choose_captions"
    label = "What to review"
    submit = "Show"
    answers = ("captions", "compare", "judge", "tracks", "order")

    def ask(self, inputs: types.Object, ctx: Any) -> None:
        """Shows the fields that there are."""
        known = fields.caption_fields(ctx.dataset)
        tracks = fields.track_fields(ctx.dataset)
        chosen = ctx.params.get("captions")
        others = [field for field in known if field != chosen]
        choices: dict[str, dict[str, str]] = {
            "captions": {field: field for field in known},
            "compare": {NO_FIELD: "nothing", **{field: field for field in others}},
            "judge": JUDGE,
            "tracks": {field: field for field in tracks or [NO_FIELD]},
            "order": ORDER,
        }
        labels = {
            "captions": "Captions",
            "compare": "Compare them with",
            "judge": "Say which is better",
            "tracks": "Tracks to show",
            "order": "Order",
        }
        for name, options in choices.items():
            pick(inputs, name, options, label=labels[name])
