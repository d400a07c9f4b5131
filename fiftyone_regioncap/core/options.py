"""Options that are declared once and that every door reads.

A job or a backend declares its options as a frozen dataclass that derives from
:class:`Options`, one :func:`option` per field::

    @dataclass(frozen=True)
    class FlowOptions(Options):
        scale: float = option(
            0.5, "Size of the image that flow is computed on.", minimum=0.1, maximum=1
        )

Constructing it validates the values. The shell's options, the App's forms, the SDK's
signatures and documentation, the tables in the docs and the provenance record of a job
are made from the same declarations.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.field_names import field_name_problem

T = TypeVar("T", bound="Options")

Picker = Literal[
    "prompts",
    "tracks",
    "captions",
    "regions",
    "score",
    "new prompts",
    "new tracks",
    "new captions",
    "new parts",
    "new heatmaps",
    "format",
    "format to read",
    "file",
    "folder",
]
"""What helps to choose a value in the App: a field of some kind, a field of some kind
that may be new, a file explorer."""

_KEY = "fiftyone_regioncap"

_WORDS = {"dir": "folder", "gpu": "GPU", "max": "maximum", "min": "minimum"}
"""Words of labels in place of parts of names."""


@dataclass(frozen=True)
class Declaration:
    """Declaration of an option beside its name, type and default.

    Attributes:
        help: Full sentence on what the option does.
        label: Name in forms; None derives one from the field's name.
        unit: The unit of its value, such as ``"pixels"``.
        choices: Allowed values with a description each; None when the type says all.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
        picker: Kind of App control that helps to choose a value.
        advanced: Whether forms show it only under "Advanced".
        flag: Name in the shell without dashes; None derives one from the name.
        secret: Whether the value must never be shown or stored.
        result: Whether results are made again when it changes; False for what is about
            speed alone, or about which results are made and where they go.
    """

    help: str
    label: str | None = None
    unit: str | None = None
    choices: Mapping[Any, str] | None = None
    minimum: float | None = None
    maximum: float | None = None
    picker: Picker | None = None
    advanced: bool = False
    flag: str | None = None
    secret: bool = False
    result: bool = True


def option(default: Any = MISSING, help: str = "", **declared: Any) -> Any:
    """Declares a field of an :class:`Options` class.

    Args:
        default: The default value; without one, the option is required.
        help: Full sentence on what the option does.
        **declared: Other attributes of :class:`Declaration`.

    Returns:
        A dataclass field.
    """
    return dataclasses.field(
        default=default, metadata={_KEY: Declaration(help, **declared)}
    )


def group(options: type[Options], rename: Mapping[str, str] | None = None) -> Any:
    """Declares a field that holds further options, which appear beside the others.

    Args:
        options: The class of the options.
        rename: Names under which some of them appear, by field. Options with the same
            name share one value, so that a stage reads what the one before it writes.

    Returns:
        A dataclass field.
    """
    return dataclasses.field(
        default_factory=options, metadata={_KEY: dict(rename or {})}
    )


@dataclass(frozen=True)
class OptionField:
    """One option of a class, with all that is declared of it.

    Attributes:
        name: Name of the option, the same at every door.
        type: Resolved type annotation.
        default: Default value; ``dataclasses.MISSING`` for a required option.
        declaration: Declared help, bounds, choices and names.
        group: Name of the field of nested options that it belongs to, if any.
        inner: Name of the option in its group.
    """

    name: str
    type: Any
    default: Any
    declaration: Declaration
    group: str | None = None
    inner: str = ""

    @property
    def required(self) -> bool:
        """Returns whether a value must be given."""
        return self.default is MISSING

    @property
    def label(self) -> str:
        """Returns the option's name for people."""
        words = [_WORDS.get(word, word) for word in self.name.split("_")]
        words[0] = words[0][:1].upper() + words[0][1:]
        return self.declaration.label or " ".join(words)

    @property
    def flag(self) -> str:
        """Returns the option's name in the shell, with dashes."""
        return "--" + (self.declaration.flag or self.name).replace("_", "-")

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Returns the types that a value may have, without ``None``."""
        return tuple(kind for kind in _members(self.type) if kind is not type(None))

    @property
    def optional(self) -> bool:
        """Returns whether ``None`` is a value."""
        return type(None) in _members(self.type)

    @property
    def choices(self) -> dict[Any, str]:
        """Allowed values with a description each; empty when they are not listed."""
        if self.declaration.choices is not None:
            return dict(self.declaration.choices)
        if all(get_origin(kind) is Literal for kind in self.kinds):
            return {value: "" for kind in self.kinds for value in get_args(kind)}
        return {}

    @property
    def expects(self) -> str:
        """Returns what a value must be, for messages and documentation."""
        declared, choices = self.declaration, self.choices
        if choices:
            many = any(get_origin(kind) is tuple for kind in self.kinds)
            text = ("some" if many else "one") + f" of {', '.join(map(str, choices))}"
        else:
            # What bounds follow is the number.
            kinds = sorted(self.kinds, key=lambda kind: get_origin(kind) is not Literal)
            text = " or ".join(map(_name_of, kinds))
        low, high = declared.minimum, declared.maximum
        if low is not None and high is not None:
            text += f" from {low:g} to {high:g}"
        elif low is not None:
            text += f" of at least {low:g}"
        elif high is not None:
            text += f" of at most {high:g}"
        return text + (f" ({declared.unit})" if declared.unit else "")

    @property
    def documentation(self) -> str:
        """Describes the option in sentences: its effect, its values and its default."""
        default = "" if self.required else f"; default {self.default!r}"
        return f"{self.declaration.help} Give {self.expects}{default}."

    def check(self, value: Any) -> Any:
        """Validates a value.

        Args:
            value: A value as Python code, a form or parsed JSON gives it.

        Returns:
            The value in the option's own type: numbers of other libraries become
            Python's, lists become tuples.

        Raises:
            OptionError: When the value is of another type, out of range, or not among
                the choices.
        """
        if value is None and self.optional:
            return None
        if self.declaration.secret and isinstance(value, str):
            return value  # never stored, and checked by who sends it, unshown
        if isinstance(value, str | Path) and not is_text(str(value)):
            raise OptionError(
                f"{self.name}={str(value)!r}: has bytes that are no text in UTF-8; "
                "rename the file, or give another text"
            )
        for kind in self.kinds:
            found = _convert(value, kind)
            if found is not MISSING and self._allows(found):
                self._check_name(found)
                return found
        shown = "***" if self.declaration.secret else repr(value)
        raise OptionError(f"{self.name}={shown}: give {self.expects}")

    def _check_name(self, value: Any) -> None:
        """Raises an error when a value is no name of a field to write to."""
        named = (self.declaration.picker or "").startswith("new ")
        if named and (problem := field_name_problem(value)) is not None:
            raise OptionError(f"{self.name}: {problem}")

    def parse(self, text: str) -> Any:
        """Validates a value that was written as text, such as in a shell.

        Raises:
            OptionError: When the text is no value of this option.
        """
        if self.optional and text.lower() in ("none", "null"):
            return None
        parts = [part.strip() for part in text.split(",")]
        for read in (lambda: text, lambda: json.loads(text), lambda: parts):
            try:
                return self.check(read())
            except (json.JSONDecodeError, OptionError):
                continue
        return self.check(text)

    def _allows(self, value: Any) -> bool:
        """Returns whether a value of the right type is within the declared bounds."""
        choices, declared = self.choices, self.declaration
        chosen = value if isinstance(value, tuple) else (value,)
        if choices and not set(chosen) <= choices.keys():
            return False
        if not isinstance(value, int | float) or isinstance(value, bool):
            return True
        low = -math.inf if declared.minimum is None else declared.minimum
        high = math.inf if declared.maximum is None else declared.maximum
        return low <= value <= high


class Options:
    """Base of all options: validates on construction, converts from and to mappings."""

    def __post_init__(self) -> None:
        """Validates each field.

        Raises:
            OptionError: When a value doesn't fit its declaration.
        """
        for field in _all_fields(type(self)):
            if field.group is None:
                value = field.check(getattr(self, field.name))
                object.__setattr__(self, field.name, value)

    @classmethod
    def from_mapping(
        cls: type[T], values: Mapping[str, Any], owner: str | None = None
    ) -> T:
        """Makes options of values by name; those that are absent have the default.

        Args:
            values: Values by option name; options of groups stand beside the others.
            owner: Whose options they are, for messages, such as ``"captioner dam"``.

        Raises:
            OptionError: When a name is unknown, a required option is missing, or a
                value doesn't fit.
        """
        known = _all_fields(cls)
        names = {field.name for field in known}
        where = f"{owner}: " if owner else ""
        if not isinstance(values, Mapping):
            raise OptionError(f"{where}give options by name, not {values!r}")
        for name in values:
            if name not in names:
                raise OptionError(where + unknown(name, names))
        own: dict[str, Any] = {}
        nested: dict[str, dict[str, Any]] = {}
        for field in known:
            if field.name in values:
                inside = field.group is not None
                holder = nested.setdefault(str(field.group), {}) if inside else own
                holder[field.inner if inside else field.name] = values[field.name]
            elif field.required:
                raise OptionError(
                    f"{where}{field.name} is missing; give {field.expects}"
                )
        hints = _hints(cls)
        try:
            for field in known:
                if field.group is not None and field.name in values:
                    field.check(values[field.name])  # by the name that was given
            for name, inner in nested.items():
                own[name] = hints[name].from_mapping(inner)
            return cls(**own)
        except OptionError as error:
            raise OptionError(f"{where}{error}") from None

    def to_mapping(self) -> dict[str, Any]:
        """Returns the options by name as JSON holds them, secrets left out."""
        return {
            field.name: _plain(self._value(field))
            for field in fields_of(type(self))
            if not field.declaration.secret
        }

    def result_facts(self) -> dict[str, Any]:
        """Returns the options on which results depend, as JSON values by name.

        Defaults are left out, so that results stay up to date when an option is added.
        """
        depends = {
            field.name: None if field.required else _plain(field.default)
            for field in fields_of(type(self))
            if field.declaration.result
        }
        return {
            name: value
            for name, value in self.to_mapping().items()
            if name in depends and value != depends[name]
        }

    def _value(self, field: OptionField) -> Any:
        if field.group is None:
            return getattr(self, field.name)
        holder = getattr(self, field.group)
        known = {inner.name: inner for inner in _all_fields(type(holder))}
        return holder._value(known[field.inner])


def fields_of(options: type[Options]) -> tuple[OptionField, ...]:
    """Returns the options of a class, those of its groups included, in their order.

    Raises:
        TypeError: When a field was not declared by :func:`option` or :func:`group`.
    """
    found: dict[str, OptionField] = {}
    for field in _all_fields(options):
        found.setdefault(field.name, field)
    return tuple(found.values())


def _all_fields(options: type[Options]) -> tuple[OptionField, ...]:
    """Returns the options of a class; of several that share a value, each."""
    found: list[OptionField] = []
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        hint = _hints(options)[field.name]
        if isinstance(hint, type) and issubclass(hint, Options):
            rename = field.metadata[_KEY]
            found += [
                dataclasses.replace(
                    inner,
                    name=rename.get(inner.name, inner.name),
                    group=field.name,
                    inner=inner.name,
                )
                for inner in _all_fields(hint)
            ]
        elif _KEY in field.metadata:
            declared = field.metadata[_KEY]
            found.append(OptionField(field.name, hint, field.default, declared))
        else:
            raise TypeError(f"{options.__name__}.{field.name} is not declared")
    return tuple(found)


def markdown_table(options: type[Options]) -> str:
    """Returns a table of the options of a class for the docs."""
    rows = ["| option | what it does | values | default |", "|---|---|---|---|"]
    for field in fields_of(options):
        default = "required" if field.required else f"`{field.default}`"
        expects = field.expects.replace("|", "\\|")
        text = field.declaration.help.replace("<", "&lt;")  # no HTML
        rows.append(f"| `{field.name}` | {text} | {expects} | {default} |")
    return "\n".join(rows)


def unknown(name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that is no option, with the known ones."""
    names = sorted(known)
    if not names:
        return f"unknown option {name!r}; there are none"
    close = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown option {name!r}{hint} known options: {', '.join(names)}"


def is_text(text: str) -> bool:
    """Returns whether a text can be stored: it is Unicode, without a null character."""
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a file name that are no UTF-8
        return False
    return "\0" not in text


def _hints(options: type) -> Mapping[str, Any]:
    if options not in _known_hints:
        _known_hints[options] = get_type_hints(options)
    return _known_hints[options]


_known_hints: dict[type, Mapping[str, Any]] = {}
"""Types of fields by class, as annotations that are texts take long to evaluate."""


def _members(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type alone."""
    union = get_origin(hint) in (Union, types.UnionType)
    return get_args(hint) if union else (hint,)


def _name_of(kind: Any) -> str:
    """Returns a type's name for people."""
    if get_origin(kind) is Literal:
        return " or ".join(str(value) for value in get_args(kind))
    if get_origin(kind) is tuple:
        inner, *rest = get_args(kind)
        count = "" if rest == [Ellipsis] else f"{len(rest) + 1} "
        item = _name_of(inner).removeprefix("a ").removeprefix("an ")
        return f"a list of {count}{item}s"
    if get_origin(kind) is Mapping:
        return "values by name"
    if kind is Any:
        return "a name, or an object"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _convert(value: Any, kind: Any) -> Any:
    """Returns a value as the type has it; ``MISSING`` when it is none of it."""
    origin = get_origin(kind)
    if origin is Literal:
        return value if value in get_args(kind) else MISSING
    if origin is tuple:
        return _convert_tuple(value, get_args(kind))
    if origin is Mapping:
        return dict(value) if isinstance(value, Mapping) else MISSING
    if origin is not None:
        kind = origin
    if kind is Any:
        return value
    if kind is bool:
        return value if isinstance(value, bool) else MISSING
    if kind is int:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return int(value) if whole and -(2**63) <= value < 2**63 else MISSING
    if kind is float:
        number = isinstance(value, Real) and not isinstance(value, bool)
        return float(value) if number and math.isfinite(value) else MISSING
    if kind is str:
        text = isinstance(value, str | Path) and is_text(str(value))
        return str(value) if text else MISSING
    return value if isinstance(value, kind) else MISSING


def _convert_tuple(value: Any, members: tuple[Any, ...]) -> Any:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return MISSING
    items = list(value)
    if members[-1] is Ellipsis:
        members = members[:1] * len(items)
    if len(members) != len(items):
        return MISSING
    found = tuple(map(_convert, items, members))
    return MISSING if MISSING in found else found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    json_types = (str, int, float, bool, Mapping, type(None))
    return value if isinstance(value, json_types) else str(value)
