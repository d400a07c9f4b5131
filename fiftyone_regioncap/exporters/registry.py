"""The formats by name; each is imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiftyone_regioncap.core.registry import LazyRegistry
from fiftyone_regioncap.exporters.base import Format, ImportableFormat
from fiftyone_regioncap.exporters.staging import ExportError

_HERE = "fiftyone_regioncap.exporters"

FORMATS: LazyRegistry[type[Format]] = LazyRegistry(
    kind="format",
    entries={
        "coco": f"{_HERE}.coco:Coco",
        "csv": f"{_HERE}.tables:Csv",
        "dam": f"{_HERE}.dam:Dam",
        "dlc-bench": f"{_HERE}.dam:DlcBench",
        "hf-datasets": f"{_HERE}.hugging_face:HuggingFace",
        "jsonl": f"{_HERE}.tables:JsonLines",
        "llava": f"{_HERE}.llava:Llava",
        "mevis": f"{_HERE}.mevis:MeViS",
        "osprey": f"{_HERE}.osprey:Osprey",
        "plm": f"{_HERE}.plm:Plm",
        "ref-youtube-vos": f"{_HERE}.mevis:RefYouTubeVos",
        "sa-v": f"{_HERE}.sav:SaV",
        "videorefer": f"{_HERE}.videorefer:VideoRefer",
        "videorefer-bench": f"{_HERE}.videorefer:VideoReferBench",
        "webvtt": f"{_HERE}.webvtt:WebVtt",
        "youtube-vis": f"{_HERE}.youtube_vis:YouTubeVis",
    },
    group="fiftyone_regioncap.exporters",
)


def importable_formats() -> dict[str, type[ImportableFormat]]:
    """Returns the formats that can be read back, by name."""
    return {
        name: found
        for name, found in FORMATS.available().items()
        if issubclass(found, ImportableFormat)
    }


def make_format(name: str, options: Mapping[str, Any] | None = None) -> Format:
    """Makes a format of its name and options.

    Raises:
        BackendError: When there is none of that name.
        OptionError: When it has no such option, or a value doesn't fit.
    """
    return FORMATS[name].from_mapping(options or {}, f"format {name}")


def find_importable(name: str) -> type[ImportableFormat]:
    """Returns the format of a name, to be read.

    Raises:
        BackendError: When there is none of that name.
        ExportError: When it can't be read back.
    """
    found = FORMATS[name]
    if not issubclass(found, ImportableFormat):
        raise ExportError(
            f"the format {name!r} can't be read back; choose one of "
            + ", ".join(importable_formats())
        )
    return found
