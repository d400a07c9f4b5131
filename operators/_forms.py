"""Forms that are made from declared options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fiftyone as fo
from fiftyone.operators import types

from fiftyone_regioncap.core.errors import FieldError, OptionError, RegionCapError
from fiftyone_regioncap.core.options import OptionField, fields_of, unknown
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.dataset import caption_fields, fields
from fiftyone_regioncap.dataset.sequences import are_sequences
from fiftyone_regioncap.dataset.store import frame_path
from fiftyone_regioncap.models.registry import AUTO
from fiftyone_regioncap.operations import NONE, REGISTRIES, ModelChoice, Operation

from . import _scope
from ._inputs import pick

_ROLES = {
    "propose": "propagator",
    "find_shots": None,
    "propagate": "propagator",
    "caption": "captioner",
}
"""Models of the stages that can say before a run what they would do."""

_OF_A_SAMPLE = ("object_id", "frame")
"""Options that mean one sample, so that they are asked for beside an open one."""

ADVANCED = "advanced"
"""The switch that shows the options that few need."""

_OWN = "_of_"
"""Is in the names of inputs with the options of what was chosen; see _own_name."""

_FORM_ONLY = frozenset(
    {ADVANCED, "accept_license", "preview", "refusal", "view_target", _scope.SCOPE}
)
"""Inputs of forms that are no parameters of operations."""

NO_FIELD = {
    "prompts": "No field marks objects yet. Draw boxes, points or polylines on a "
    "frame, or import them into a frame field of Detections, Keypoints or Polylines",
    "tracks": "No frame field holds tracks yet. Run 'Propagate masks' first",
    "captions": "No field holds captions yet. Caption tracks or regions first",
    "regions": "No field holds Detections, Polylines or Keypoints yet",
    "score": "No field holds captions with scores yet",
}
"""Why an operator can't run where no field is of the kind that it needs."""

NO_SAMPLE = (
    "Open a video first: its panel 'Tracks' has a button for this by each object"
)
"""Why an operator on one object can't run in the grid."""


def refuse(inputs: types.Object, message: str) -> None:
    """Ends a form that cannot be filled, saying why; Execute stays disabled."""
    prop = inputs.str("refusal", required=True, view=types.Error(label=message))
    prop.invalid = True
    prop.error_message = message


def ask(inputs: types.Object, ctx: Any, operation: Operation) -> None:
    """Adds the inputs of an operation, those that few need behind a switch.

    Args:
        inputs: The form.
        ctx: The execution context.
        operation: Operation whose options are asked for.
    """
    for field in operation.fields:
        kind = str(field.declaration.picker)
        if kind in NO_FIELD and not field.optional and not _fields(ctx, kind):
            refuse(inputs, NO_FIELD[kind])
            return
        of_a_sample = field.required and field.name in _OF_A_SAMPLE
        if of_a_sample and ctx.current_sample is None:
            refuse(inputs, NO_SAMPLE)
            return
    if operation.media:
        _scope.ask(inputs, ctx, operation)
    advanced = bool(ctx.params.get(ADVANCED))
    for field in _shown(operation.fields, advanced):
        if field.name in ("options", "recipe_options"):
            _ask_own_options(inputs, ctx, operation, field.name, advanced)
        elif field.name not in _OF_A_SAMPLE or ctx.current_sample is not None:
            ask_option(inputs, ctx, field, ctx.params)
    for model in operation.models:
        if not model.media or model.media == ctx.dataset.media_type:
            _ask_model(inputs, ctx, operation, model, advanced)
    for field in operation.settings if advanced else ():
        if field.declaration.advanced:
            ask_option(inputs, ctx, field, ctx.params)
    if _has_more(operation):
        view = types.SwitchView()
        inputs.bool(ADVANCED, default=False, label="Advanced", view=view)
    missing = [
        field
        for field in operation.fields
        if field.required and not ctx.params.get(field.name)
    ]
    if missing or any(prop.invalid for prop in inputs.properties.values()):
        return
    try:
        options, models, _ = operation.parse(parameters(operation, ctx.params))
    except RegionCapError as error:
        refuse(inputs, str(error))
        return
    _tell(inputs, ctx, operation, options, models)


def _has_more(operation: Operation) -> bool:
    """Returns whether an operation has options that few need."""
    own = [*operation.fields, *operation.settings]
    return bool(operation.models) or any(one.declaration.advanced for one in own)


def _tell(
    inputs: types.Object,
    ctx: Any,
    operation: Operation,
    options: Any,
    models: Mapping[str, Any],
) -> None:
    """Says what would be written, kept and replaced, where a job can tell."""
    stages = [stage for stage in _ROLES if stage in operation.stages]
    if not stages:
        return
    from fiftyone_regioncap.jobs.preview import preview

    several = len(operation.stages) > 1
    groups = {s: getattr(options, s) if several else options for s in stages}
    roles = {stage: role for stage in stages if (role := _ROLES[stage]) is not None}
    names = {stage: _name_of(models[role], role) for stage, role in roles.items()}
    found = preview(_scope.samples(ctx, operation), **groups, models=names)
    shown = found.to_markdown()
    if names.get("caption") == "measured":
        shown += (
            "\n- `measured` is no AI model: it states color, size, place and motion as "
            "measured in the video"
        )
    inputs.md(shown, name="preview")


def _name_of(spec: Any, role: str) -> str:
    """Returns the name of the model that a specification stands for."""
    name = getattr(spec, "name", AUTO)
    return resolve(REGISTRIES[role]).choose()[0].name if name == AUTO else name


def known_fields(ctx: Any, kind: str) -> list[str]:
    """Returns the dataset's fields of a kind, such as ``"tracks"``."""
    return _fields(ctx, kind)


def parameters(operation: Operation, params: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a form's parameters for an operation; empty inputs get the default.

    Raises:
        OptionError: When an input that is a text is no value of its option.
    """
    known = operation.parameters()
    found: dict[str, Any] = {}
    by_name = {field.name: field for field in operation.fields}
    settings = {field.name: field for field in operation.settings}
    own = {}
    for name, chosen in _chosen(operation, params):
        declared = {one.name: one for one in _own_fields(operation, name, chosen)}
        inputs = params.get(name), params.get(_own_name(name, chosen))
        given = {**(inputs[0] or {}), **(inputs[1] or {})}
        own[name] = {
            key: _parsed(declared[key], value) if key in declared else value
            for key, value in given.items()
            if _picked(value) not in (None, "", NONE)  # of a choice: the default
        }
    for name, value in {**params, **own}.items():
        if name not in known or _picked(value) in (None, ""):
            continue
        if name in own:
            found[name] = value
        elif name in by_name:
            found[name] = _value(by_name[name], value)
        elif name in settings:
            found[name] = _parsed(settings[name], value)
        else:
            found[name] = value
    return found


def require_known(operation: Operation, params: Mapping[str, Any]) -> None:
    """Makes sure that an operation has all parameters of a call.

    Args:
        operation: The operation.
        params: The parameters, and what else a form holds.

    Raises:
        OptionError: When one is neither.
    """
    known = operation.parameters()
    shown = _FORM_ONLY | {f"{model.name}_missing" for model in operation.models}
    for name in params:
        if name.startswith("panel_"):
            continue  # FiftyOne's own, where a panel asks
        if name not in known and name not in shown and _OWN not in name:
            raise OptionError(f"{operation.name}: {unknown(name, known)}")


def _chosen(
    operation: Operation, params: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Returns what has options of its own: their name, and what was chosen."""
    names = {field.name for field in operation.fields}
    if "options" in names:
        from fiftyone_regioncap.exporters import FORMATS

        yield "options", params.get("format") or next(iter(FORMATS))
    for model in operation.models:
        wanted = params.get(model.name) or model.default or NONE
        if wanted == AUTO:
            wanted = model.registry.choose()[0].name
        if wanted != NONE:
            yield f"{model.name}_options", wanted
            if "recipe_options" in names and model is operation.models[0]:
                yield "recipe_options", wanted


def _own_fields(
    operation: Operation, name: str, chosen: str
) -> tuple[OptionField, ...]:
    """Returns the options of what was chosen; see :func:`_chosen`."""
    if name == "options":
        from fiftyone_regioncap.exporters import FORMATS

        return fields_of(FORMATS[chosen])
    if name == "recipe_options":
        return fields_of(operation.models[0].registry[chosen].training_options)
    (model,) = (m for m in operation.models if f"{m.name}_options" == name)
    return fields_of(model.registry[chosen].options)


def _own_name(name: str, chosen: str) -> str:
    """Returns the input of the options of what was chosen.

    Each has its own, as a form keeps the values of inputs that it no longer shows.
    """
    return f"{name}{_OWN}{re.sub(r'[^a-z0-9]', '_', chosen)}"


def ask_option(
    inputs: types.Object, ctx: Any, field: OptionField, params: Mapping[str, Any]
) -> None:
    """Adds the input of an option, and what is wrong with the value that it has."""
    value = params.get(field.name)
    offered = _scope.offered(ctx, params).get(field.name)
    if field.name in _OF_A_SAMPLE and offered is not None:
        prop = pick(inputs, field.name, offered, label=field.label)
    else:
        prop = _input(inputs, ctx, field, value)
    if _picked(value) in (None, ""):
        return
    try:
        _check_new(ctx, field, _value(field, value))
    except RegionCapError as error:
        prop.invalid, prop.error_message = True, str(error)


def _check_new(ctx: Any, field: OptionField, name: Any) -> None:
    """Validates the name of a field to write.

    Raises:
        FieldError: When it is no name, or a field of another kind has it.
    """
    new, _, kind = str(field.declaration.picker).partition(" ")
    if new != "new":
        return
    fields.require_output(name)
    dataset = ctx.dataset
    taken = set(dataset.get_field_schema())
    taken |= {f"frames.{one}" for one in dataset.get_frame_field_schema() or ()}
    prompts = ctx.params.get("prompts") or next(
        iter(fields.prompt_fields(dataset)), None
    )
    own = [one for one in _fields(ctx, kind) if one != prompts or kind == "prompts"]
    if name in taken and name not in own:
        raise FieldError(f"{name} holds something else; choose another name")


def _shown(options: Sequence[OptionField], advanced: bool) -> list[OptionField]:
    """Returns the options that a form shows, with or without the advanced ones."""
    return [one for one in options if advanced or not one.declaration.advanced]


def _picked(value: Any) -> Any:
    """Returns the path of a file or folder that was picked; others are as they are."""
    if isinstance(value, Mapping) and "absolute_path" in value:
        return value["absolute_path"]
    return value


def _parsed(field: OptionField, value: Any) -> Any:
    """Converts what an input holds into a value of its option."""
    value = _picked(value)
    return field.parse(value) if isinstance(value, str) else field.check(value)


def _value(field: OptionField, value: Any) -> Any:
    value = _picked(value)
    if (
        field.declaration.picker in ("file", "folder")
        and isinstance(value, str)
        and not Path(value).expanduser().is_absolute()
    ):
        raise OptionError(
            f"{value!r} depends on where the App's server was started; give the whole "
            "path, from the root of the disk on"
        )
    return _parsed(field, value)


def _input(inputs: types.Object, ctx: Any, field: OptionField, value: Any) -> Any:
    """Makes the input of an option, by its type and by what helps to choose."""
    declared = field.declaration
    about = {"label": field.label, "description": declared.help}
    default = None if field.required else field.default
    if declared.picker in NO_FIELD:
        return _pick_field(inputs, ctx, field, default)
    if declared.picker in ("format", "format to read"):
        from fiftyone_regioncap.exporters import FORMATS, importable_formats

        every = declared.picker == "format"
        known = FORMATS.available() if every else importable_formats()
        texts = {name: f"{name}: {found.summary}" for name, found in known.items()}
        return pick(inputs, field.name, texts, **about)
    if declared.picker in ("file", "folder") and not isinstance(value, str):
        folder = declared.picker == "folder"
        view = types.FileExplorerView(choose_dir=folder, button_label="Choose")
        return inputs.file(field.name, required=field.required, **about, view=view)
    if field.choices and isinstance(default, tuple):
        choices = types.Choices()
        for value in field.choices:
            choices.add_choice(value, label=value)
        return inputs.list(
            field.name,
            types.String(),
            default=list(default),
            **about,
            view=types.DropdownView(multiple=True, choices=choices.choices),
        )
    if field.choices:
        return _pick_choice(inputs, field, default)
    if field.kinds == (bool,) and not field.optional:
        return inputs.bool(field.name, default=default, **about)
    make: dict[Any, Callable[..., Any]] = {int: inputs.int, float: inputs.float}
    if len(field.kinds) == 1 and field.kinds[0] in make:
        return make[field.kinds[0]](
            field.name,
            default=default,
            min=declared.minimum,
            max=declared.maximum,
            required=False,
            **about,
        )
    if field.kinds != (str,):
        about["description"] = f"{declared.help} Give {field.expects}."
    text = default if isinstance(default, str) else None
    return inputs.str(field.name, default=text, required=field.required, **about)


def _apart(field: OptionField) -> tuple[str, str]:
    """Returns an option's help, and apart from it what it is if none is chosen."""
    about, _, default = field.declaration.help.partition("; empty for ")
    return (f"{about}.", default.rstrip(".")) if default else (about, "default")


def _pick_choice(inputs: types.Object, field: OptionField, default: Any) -> Any:
    texts = {str(value): text or str(value) for value, text in field.choices.items()}
    about, unset = _apart(field)
    if field.optional:
        texts = {NONE: unset, **texts}
    first = next(iter(texts)) if field.required else NONE
    return pick(
        inputs,
        field.name,
        texts,
        label=field.label,
        description=about,
        default=first if default is None else str(default),
    )


def _pick_field(
    inputs: types.Object, ctx: Any, field: OptionField, default: Any
) -> Any:
    kind = str(field.declaration.picker)
    names: Sequence[str] = _fields(ctx, kind)
    texts = {name: name for name in names}
    about, unset = _apart(field)
    if isinstance(default, str) and default not in texts:
        # Of sequences, what is on frames is on the images themselves.
        name = frame_path(default)
        default = name if name in texts else default
    if field.optional:
        texts = {**texts, NONE: "none"} if default else {NONE: unset, **texts}
    return pick(
        inputs,
        field.name,
        texts,
        label=field.label,
        description=about,
        default=default if default in texts else None,
    )


def _fields(ctx: Any, kind: str) -> list[str]:
    """Returns the fields of the dataset that are of a kind, the likeliest first."""
    dataset = ctx.dataset
    if kind == "prompts":
        return list(fields.prompt_fields(dataset))
    if kind == "tracks":
        if are_sequences(ctx.view):  # of images
            return list(fields.region_fields(dataset))
        return list(fields.track_fields(dataset))
    if kind == "regions":
        return list(fields.region_fields(dataset))
    if kind == "captions":
        return list(caption_fields.caption_fields(dataset))
    if kind == "score":
        return _scores(ctx)
    wanted = fo.Heatmap if kind == "heatmaps" else fo.Detections
    schema = {
        **(dataset.get_field_schema() or {}),
        **{
            f"frames.{k}": v
            for k, v in (dataset.get_frame_field_schema() or {}).items()
        },
    }
    return [
        name
        for name, field in schema.items()
        if isinstance(field, fo.EmbeddedDocumentField) and field.document_type is wanted
    ]


def _scores(ctx: Any) -> list[str]:
    """Numbers of the chosen captions, what is made to sort them by first."""
    names = caption_fields.caption_fields(ctx.dataset)
    chosen = ctx.params.get("captions") or next(iter(names), None)
    if chosen not in names:
        return []
    labels = caption_fields.CaptionField.of(ctx.dataset, chosen).labels
    schema = ctx.dataset.get_field_schema(flat=True, ftype=fo.FloatField)
    prefix = f"{labels}."
    found = [path.removeprefix(prefix) for path in schema if path.startswith(prefix)]
    first = ("image_text_similarity", "confidence", "caption_confidence")
    return sorted(found, key=lambda name: (name not in first, name))


def _ask_model(
    inputs: types.Object,
    ctx: Any,
    operation: Operation,
    model: ModelChoice,
    advanced: bool,
) -> None:
    """Asks for a model: which, its weights, its own options, its license's consent.

    Args:
        inputs: The form.
        ctx: The execution context.
        operation: The operation; where it is dry, the model isn't loaded, so that
            neither weights nor consent are needed.
        model: The model that is asked for.
        advanced: Whether to ask for what few need, too.
    """
    registry, cards, dry = model.registry, model.cards, operation.dry
    texts = {} if model.only else {AUTO: f"auto ({registry.choose()[0].name})"}
    if model.optional:
        texts = {NONE: "none", **texts}
    for card in cards.values():
        use = "" if card.commercial else ", non-commercial"
        state = "" if card.missing() is None else "; not ready"
        texts[card.name] = f"{card.name}: {card.summary} ({card.license}{use}{state})"
    pick(
        inputs,
        model.name,
        texts,
        label=model.name.capitalize(),
        description=model.help,
        default=model.default or NONE,
    )
    wanted = ctx.params.get(model.name) or model.default or NONE
    if wanted == NONE:
        return
    card = registry.choose()[0] if wanted == AUTO else cards[wanted]
    weights = ctx.params.get(f"{model.name}_weights")
    missing = None if dry or weights or wanted == AUTO else card.missing()
    # It stays while it is filled, though nothing is missing by then.
    if missing is not None or weights or advanced:
        inputs.str(
            f"{model.name}_weights",
            required=False,
            label=f"Weights of the {model.name}",
            description="A folder, a file or a hub id; empty for the default",
        )
    if missing is not None:
        inputs.view(
            f"{model.name}_missing",
            types.Warning(label=f"{card.name} is not ready", description=missing),
        )
    if not (dry or wanted == AUTO or weights) and card.wants_consent():
        consent = inputs.bool(
            "accept_license",
            default=False,
            label=f"I accept the license: {card.license}",
            description=f"Of {card.weights}; asked once",
        )
        if not ctx.params.get("accept_license"):
            consent.invalid = True
            consent.error_message = "Accept the license to download the weights"
    if advanced and model.only != "training":  # which has options of its own
        _ask_own_options(inputs, ctx, operation, f"{model.name}_options", advanced)


def _ask_own_options(
    inputs: types.Object, ctx: Any, operation: Operation, name: str, advanced: bool
) -> None:
    """Adds the options of the chosen model, of its training, or of the format."""
    chosen = dict(_chosen(operation, ctx.params))[name]
    shown = _shown(_own_fields(operation, name, chosen), advanced)
    if not shown:
        return
    inner = types.Object()
    own = _own_name(name, chosen)
    backend = f"training {chosen}" if name == "recipe_options" else chosen
    inputs.define_property(own, inner, label=f"Options of {backend}")
    given = {**(ctx.params.get(name) or {}), **(ctx.params.get(own) or {})}
    for field in shown:
        ask_option(inner, ctx, field, given)
