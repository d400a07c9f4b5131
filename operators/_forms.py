"""The pieces that the operators' forms are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.search import embedding


def target(inputs: types.Object, ctx: Any, action: str) -> None:
    """Asks which samples to work on: the selected ones, the view, or the dataset."""
    inputs.view_target(ctx, action_description=action, allow_selected_samples=True)


def refuse(inputs: types.Object, message: str) -> None:
    """Ends a form that cannot be filled, saying why; Execute stays disabled."""
    prop = inputs.str("refusal", required=True, view=types.Error(label=message))
    prop.invalid = True
    prop.error_message = message


def pick(
    inputs: types.Object,
    name: str,
    options: Mapping[str, str],
    *,
    label: str,
    description: str | None = None,
) -> None:
    """Asks for one of the values, which are shown as texts; the first by default."""
    choices = types.DropdownView()
    for value, text in options.items():
        choices.add_choice(value, label=text)
    inputs.enum(
        name,
        choices.values(),
        default=next(iter(options)),
        required=True,
        label=label,
        description=description,
        view=choices,
    )


def pick_field(
    inputs: types.Object,
    name: str,
    fields: Sequence[str],
    *,
    label: str,
    description: str,
) -> None:
    """Asks for one of the fields that fit."""
    paths = {path: path for path in fields}
    pick(inputs, name, paths, label=label, description=description)


def embedded(ctx: Any, choices: Sequence[str]) -> bool:
    """Whether regions of the chosen captions were embedded.

    Args:
        ctx: the execution context.
        choices: of the captions' field, the default first.
    """
    name = ctx.params.get("field") or choices[0]
    return CaptionField.of(ctx.dataset, name).embedded


def embedding_model(visual: bool) -> str:
    """What to say of the model that texts are embedded with."""
    if visual:
        return (
            "Folder or hub id of the captioner that embedded the regions; empty for "
            "where it was then"
        )
    return (
        "Folder or hub id of a sentence-transformers model; empty for "
        f"{embedding.DEFAULT_MODEL}"
    )


def output_field(
    inputs: types.Object,
    ctx: Any,
    name: str,
    *,
    default: str,
    label: str,
    existing: Sequence[str],
    taken: Sequence[str],
) -> None:
    """Asks where to write, and what to do with samples that are done already.

    Args:
        inputs: the form.
        ctx: the execution context.
        name: of the parameter.
        default: the field's name.
        label: for people.
        existing: fields of the right kind, which may be written again.
        taken: all other fields, which may not.
    """
    value = ctx.params.get(name) or default
    prop = inputs.str(
        name,
        default=default,
        required=True,
        label=label,
        description="A new field, or one of the same kind that is there already",
    )
    plain = value.removeprefix("frames.")
    if not plain.isidentifier():
        prop.invalid = True
        prop.error_message = f"{value!r} is not a field name"
    elif value in taken and value not in existing:
        prop.invalid = True
        prop.error_message = f"{value} holds something else; choose another name"
    if value in existing:
        modes = types.RadioGroup()
        modes.add_choice(
            "skip",
            label="Skip samples that are complete",
            description="Samples that a killed job left unfinished are gone on with",
        )
        modes.add_choice(
            "overwrite",
            label="Overwrite",
            description=f"Do all samples again and replace what {value} holds",
        )
        inputs.enum(
            "existing",
            modes.values(),
            default="skip",
            required=True,
            label=f"{value} exists",
            view=modes,
        )


def json_object(text: str) -> dict[str, Any] | None:
    """A JSON object's content; None when the text is something else."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def pick_backend(
    inputs: types.Object, ctx: Any, registry: ModelRegistry[Any], *, label: str
) -> None:
    """Asks for a backend, showing what is ready here and what its weights allow."""
    name = registry.kind
    choices = types.DropdownView()
    chosen, reason = registry.choose()
    choices.add_choice("auto", label=f"auto ({chosen.name})", description=reason)
    for backend in registry.available().values():
        missing = backend.missing()
        use = "" if backend.commercial else ", non-commercial"
        state = "ready" if missing is None else missing
        choices.add_choice(
            backend.name,
            label=f"{backend.name}: {backend.summary}",
            description=f"license {backend.license}{use}; {state}",
        )
    inputs.enum(
        name,
        choices.values(),
        default="auto",
        required=True,
        label=label,
        view=choices,
    )
    wanted = ctx.params.get(name) or "auto"
    weights = ctx.params.get(f"{name}_weights")
    inputs.str(
        f"{name}_weights",
        required=False,
        label=f"Weights of the {registry.kind}",
        description="A folder, a file or a hub id; empty for the default",
    )
    text = ctx.params.get(f"{name}_options")
    options = inputs.str(
        f"{name}_options",
        required=False,
        label=f"Options of the {registry.kind}",
        description='JSON for what only it knows, such as {"image_size": 512}',
    )
    if text and json_object(text) is None:
        options.invalid = True
        options.error_message = "This is no JSON object"
    if wanted != "auto" and not weights and registry[wanted].wants_consent():
        consent = inputs.bool(
            "accept_license",
            default=False,
            label=f"I accept the license: {registry[wanted].license}",
            description=f"Of {registry[wanted].weights}; asked once",
        )
        if not ctx.params.get("accept_license"):
            consent.invalid = True
            consent.error_message = "Accept the license to download the weights"
    if wanted != "auto" and not weights:
        missing = registry[wanted].missing()
        if missing is not None:
            inputs.view(
                f"{name}_missing",
                types.Warning(label=f"{wanted} is not ready", description=missing),
            )
