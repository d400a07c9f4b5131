"""Dialogs in which the review panel asks a person."""

from __future__ import annotations

from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.caption_fields import CaptionField, caption_fields
from fiftyone_regioncap.review.queue import ORDERS, available_orders

from ._inputs import pick
from ._recent import Recent

NO_FIELD = "-"
"""Instead of the name of a field; no field can be called this."""

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
        return {name: ctx.params[name] for name in self.answers if name in ctx.params}


pictures: Recent[str] = Recent(4)
"""Pictures of the captions that are edited, by the ids of their labels."""


class EditCaption(Prompt):
    """Asks for another text, beside the picture."""

    name = "edit_caption"
    label = "Edit the caption"
    submit = "Save"
    answers = ("text",)

    def ask(self, inputs: types.Object, ctx: Any) -> None:
        """Shows the picture and the text."""
        picture = pictures.get(ctx.params.get("label"))
        if picture is not None:
            inputs.str(
                "picture",
                default=picture,
                view=types.ImageView(width="100%", alt="What is described"),
            )
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
        known = caption_fields(ctx.dataset)
        tracks = fields.track_fields(ctx.dataset)
        chosen = ctx.params.get("captions")
        others = [field for field in known if field != chosen]
        field = CaptionField.of(ctx.dataset, chosen if chosen in known else known[0])
        choices: dict[str, dict[str, str]] = {
            "captions": {field: field for field in known},
            "compare": {NO_FIELD: "nothing", **{field: field for field in others}},
            "judge": JUDGE,
            "tracks": {field: field for field in tracks or [NO_FIELD]},
            "order": {name: _upper(ORDERS[name]) for name in available_orders(field)},
        }
        if field.of_images:
            del choices["tracks"]
        labels = {
            "captions": "Captions",
            "compare": "Compare them with",
            "judge": "Say which is better",
            "tracks": "Tracks to show",
            "order": "Order",
        }
        for name, options in choices.items():
            pick(inputs, name, options, label=labels[name])


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
