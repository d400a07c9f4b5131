"""Captions as JSON, with all that is kept of them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, get_args

from fiftyone_regioncap.dataset.captions import CaptionRecord, Review
from fiftyone_regioncap.exporters.staging import ExportError

_DEFAULTS = {
    item.name: item.default_factory()
    if item.default_factory is not MISSING
    else item.default
    for item in fields(CaptionRecord)
    if item.name != "embedding"  # belongs to a model, not into texts
    and (item.default is not MISSING or item.default_factory is not MISSING)
}


def caption_to_json(record: CaptionRecord) -> dict[str, Any]:
    """A caption with what is known of it; what isn't is left out.

    ``first_frame`` and ``last_frame`` count from 0 and are inclusive.
    """
    values = asdict(record)
    del values["embedding"]
    first, last = values.pop("support")
    known = {
        key: value
        for key, value in values.items()
        if key not in _DEFAULTS or value != _DEFAULTS[key]
    }
    return {
        **known,
        "caption": record.caption,
        "first_frame": first,
        "last_frame": last,
    }


def caption_from_json(value: Any, **given: Any) -> CaptionRecord:
    """The inverse of :func:`caption_to_json`; keys of other tools are passed over.

    Args:
        value: JSON.
        **given: attributes that the JSON doesn't hold, such as ``index``.

    Raises:
        ExportError: when something is missing or of the wrong type.
    """
    if not isinstance(value, Mapping):
        raise ExportError(f"a caption is an object, not {value!r}")
    try:
        found = {key: value[key] for key in _DEFAULTS if value.get(key) is not None}
        support = (int(value["first_frame"]), int(value["last_frame"]))
        index = given.pop("index") if "index" in given else int(value["index"])
        for key in ("tags", "attributes"):
            found[key] = tuple((str(w), float(s)) for w, s in found.get(key, ()))
        if "category" in found:
            word, score = found["category"]
            found["category"] = (str(word), float(score))
        found["frames_used"] = tuple(map(int, found.get("frames_used", ())))
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"a caption lacks or misstates {error}; it needs index, caption, "
            "first_frame and last_frame"
        ) from error
    if not isinstance(found.get("caption", ""), str):
        raise ExportError(f"a caption is a string, not {found['caption']!r}")
    if not 0 <= support[0] <= support[1]:
        raise ExportError(f"a caption is about frames {support[0]} to {support[1]}")
    if found.get("review", "unreviewed") not in get_args(Review):
        raise ExportError(
            f"no review state {found['review']!r}; there are "
            + ", ".join(get_args(Review))
        )
    # An instance belongs to the dataset that it was exported from.
    found.pop("instance", None)
    return CaptionRecord(**{**found, "index": index, "support": support, **given})
