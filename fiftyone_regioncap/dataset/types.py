"""Compares what is written past FiftyOne with the types that its schema declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import fiftyone as fo
from bson import ObjectId

from fiftyone_regioncap.core.errors import FieldError

_KINDS: dict[type[fo.Field], tuple[type, ...]] = {
    fo.StringField: (str,),
    fo.BooleanField: (bool,),
    fo.IntField: (int,),
    fo.FloatField: (int, float),
    fo.ObjectIdField: (ObjectId,),
    fo.DateTimeField: (datetime,),
    fo.VectorField: (bytes,),
    fo.ArrayField: (bytes,),
    fo.DictField: (Mapping,),
    fo.EmbeddedDocumentField: (Mapping,),
    fo.ListField: (list, tuple),
}
"""Types of values in the database by kind of field, special kinds first."""


@cache
def _types_of(kind: type[fo.Field]) -> tuple[type, ...]:
    return next((types for k, types in _KINDS.items() if issubclass(kind, k)), ())


@dataclass(frozen=True)
class FieldTypes:
    """Types of a dataset's fields.

    FiftyOne can't load a document with a value of another type.

    Attributes:
        dataset: The dataset.
    """

    dataset: fo.Dataset
    _inner: dict[int, Mapping[str, fo.Field]] = field(default_factory=dict)
    _known: dict[str, fo.Field | None] = field(default_factory=dict)

    def check(self, path: str, value: Any) -> None:
        """Makes sure that a value may be written.

        Args:
            path: Path of a field or attribute, with ``frames.`` in front for those of
                frames.
            value: Value as it will lie in the database, or a label of a list.

        Raises:
            FieldError: When its type is not the declared one.
        """
        if path not in self._known:
            self._known[path] = self.dataset.get_field(path)
        declared = self._known[path]
        if isinstance(declared, fo.EmbeddedDocumentField) and isinstance(
            value, Mapping
        ):
            inner = getattr(declared.document_type, "_LABEL_LIST_FIELD", None)
            if inner is not None and inner not in value:
                path = f"{path}.{inner}"
                declared = self.dataset.get_field(path).field
        wrong = self._wrong(declared, value)
        if wrong is not None:
            inside, kind, found = wrong
            raise FieldError(f"{path}{inside} can't be {found!r:.60}: it is a {kind}")

    def _wrong(
        self, declared: fo.Field | None, value: Any
    ) -> tuple[str, str, Any] | None:
        """Returns the path, declared type and value of what doesn't fit."""
        if declared is None or value is None:
            return None  # attributes of labels need not be declared
        types = _types_of(type(declared))  # type: ignore[arg-type]
        if types and (
            not isinstance(value, types)
            or (isinstance(value, bool) and bool not in types)
        ):
            return "", type(declared).__name__, value
        if isinstance(declared, fo.EmbeddedDocumentField):
            inner = self._fields(declared)
            for name, item in value.items():
                wrong = self._wrong(inner.get(name), item)
                if wrong is not None:
                    return f".{name}{wrong[0]}", *wrong[1:]
        elif isinstance(declared, fo.ListField) and declared.field is not None:
            for item in value:
                wrong = self._wrong(declared.field, item)
                if wrong is not None:
                    return wrong
        return None

    def _fields(self, declared: fo.EmbeddedDocumentField) -> Mapping[str, fo.Field]:
        if id(declared) not in self._inner:
            self._inner[id(declared)] = declared.get_field_schema()
        return self._inner[id(declared)]
