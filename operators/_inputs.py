"""Inputs that several forms ask for alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types


def pick(
    inputs: types.Object,
    name: str,
    options: Mapping[str, str],
    *,
    label: str,
    description: str | None = None,
    default: str | None = None,
) -> Any:
    """Asks for one of the values, which are shown as texts.

    Args:
        inputs: The form.
        name: Name of the parameter.
        options: The text to show by value.
        label: Title of the input.
        description: Description of its purpose.
        default: The value at first; None for the first one.

    Returns:
        The property of the form.
    """
    choices = types.DropdownView()
    for value, text in options.items():
        choices.add_choice(value, label=text)
    return inputs.enum(
        name,
        choices.values(),
        default=next(iter(options)) if default is None else default,
        required=False,
        label=label,
        description=description,
        view=choices,
    )
