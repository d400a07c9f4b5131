"""Captions as JSON, with all that is kept of them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, get_type_hints

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import Declaration, OptionField
from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.staging import ExportError

_HINTS = get_type_hints(CaptionRecord)
_ATTRIBUTES = {
    item.name: OptionField(item.name, _HINTS[item.name], item.default, Declaration(""))
    for item in fields(CaptionRecord)
    if item.default is not MISSING
    and item.name != "embedding"  # belongs to a model, not into texts
}


def caption_to_json(record: CaptionRecord) -> dict[str, Any]:
    """Returns the known attributes of a caption as JSON values.

    ``first_frame`` and ``last_frame`` count from 0 and are inclusive.
    """
    values = asdict(record)
    known = {
        key: values[key]
        for key, attribute in _ATTRIBUTES.items()
        if values[key] != attribute.default
    }
    first, last = record.support
    return {
        "index": record.index,
        **known,
        "caption": record.caption,
        "first_frame": first,
        "last_frame": last,
    }


def caption_from_json(value: Any, **known: Any) -> CaptionRecord:
    """Reads a caption; keys of other tools are passed over.

    Args:
        value: Result of :func:`caption_to_json`.
        **known: Attributes that the JSON doesn't hold, such as ``index``.

    Raises:
        ExportError: When something is missing or of the wrong type.
    """
    if not isinstance(value, Mapping):
        raise ExportError(f"a caption is an object, not {str(value)[:60]!r}")
    given = {**value, **known}
    index, first, last = map(given.get, ("index", "first_frame", "last_frame"))
    if not (type(index) is type(first) is type(last) is int):
        raise ExportError(
            "a caption needs whole numbers as index, first_frame and last_frame, not "
            f"{str((index, first, last))[:60]}"
        )
    if not 0 <= first <= last:
        raise ExportError(f"a caption is about frames {first} to {last}")
    try:
        found = {
            key: attribute.check(given[key])
            for key, attribute in _ATTRIBUTES.items()
            if given.get(key) is not None
            and key != "instance"  # belongs to the dataset that it was exported from
        }
    except OptionError as error:
        raise ExportError(f"a caption has {error}") from None
    return CaptionRecord(index=index, support=(first, last), **found)
