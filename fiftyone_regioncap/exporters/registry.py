"""The formats by name; each is imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fiftyone_regioncap.exporters.base import Format, Importer
from fiftyone_regioncap.exporters.staging import ExportError

_HERE = "fiftyone_regioncap.exporters"

FORMATS: dict[str, str] = {
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
}
"""What can be written, ``"module:class"`` by name."""

IMPORTERS: dict[str, str] = {
    "coco": f"{_HERE}.coco:read_coco",
    "jsonl": f"{_HERE}.tables:read_jsonl",
    "llava": f"{_HERE}.llava:read_llava",
    "mevis": f"{_HERE}.mevis:read_mevis",
    "sa-v": f"{_HERE}.sav:read_sav",
    "videorefer": f"{_HERE}.videorefer:read_videorefer",
    "videorefer-bench": f"{_HERE}.videorefer:read_videorefer",
    "youtube-vis": f"{_HERE}.youtube_vis:read_youtube_vis",
}
"""What can be read back, ``"module:function"`` by name."""

SUMMARIES: dict[str, str] = {
    "coco": "COCO per frame with track ids and captions (pycocotools, TAO)",
    "csv": "one caption a row",
    "dam": "WebDataset shards of images with described regions, as DAM is trained on",
    "dlc-bench": "COCO with a caption a region, as DLC-Bench reads it",
    "hf-datasets": "parquet with images, for Hugging Face datasets",
    "jsonl": "one track a line, with masks and all that is kept of its captions",
    "llava": "LLaVA and VILA conversations about videos, clips or images",
    "mevis": "MeViS expressions with masks",
    "osprey": "Osprey conversations or descriptions of regions of images",
    "plm": "PLM region captions (RCap, RDCap) over SA-V masklets",
    "ref-youtube-vos": "Ref-YouTube-VOS expressions with palette masks",
    "sa-v": "SA-V masklets",
    "videorefer": "VideoRefer fine-tuning conversations about masked regions",
    "videorefer-bench": "VideoRefer-Bench-D descriptions",
    "webvtt": "WebVTT subtitles, one file an object",
    "youtube-vis": "YouTube-VIS: one annotation a track, captions as extra keys",
}
"""One line on each format."""


def make_format(name: str, options: Mapping[str, Any] | None = None) -> Format:
    """The format of a name.

    Args:
        name: out of :data:`FORMATS`.
        options: its own.

    Raises:
        ExportError: when there is none, it has no such option, or a package that it
            needs is not installed.
    """
    kind = _find(FORMATS, name, "written")
    known = {field.name: field for field in fields(kind) if field.name != "name"}
    given = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise ExportError(
                f"{name} has no option {key!r}; it has "
                + (", ".join(sorted(known)) or "none")
            )
        given[key] = _fitting(f"{name}'s {key}", value, known[key].default)
    return kind(**given)


def _fitting(what: str, value: Any, default: Any) -> Any:
    """An option's value as its kind; the kind is that of its default."""
    if isinstance(default, tuple):
        value = (value,) if isinstance(value, str) else tuple(value)
        if all(isinstance(item, str) for item in value):
            return value
        raise ExportError(f"{what} is a list of texts, not {value!r}")
    if type(value) is type(default) or (value is None and what.endswith("frames")):
        return value
    raise ExportError(f"{what} is such as {default!r}, not {value!r}")


def find_importer(name: str) -> Importer:
    """What reads a format back.

    Raises:
        ExportError: when nothing does.
    """
    return _find(IMPORTERS, name, "read back")


def _find(table: Mapping[str, str], name: str, verb: str) -> Any:
    if name not in table:
        raise ExportError(
            f"no format {name!r} can be {verb}; there are " + ", ".join(sorted(table))
        )
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
