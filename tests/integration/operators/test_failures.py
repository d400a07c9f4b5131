"""Every operator says in words what is wrong, whatever goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.executor import ExecutionContext, Executor

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.jobs import board
from fiftyone_regioncap.operations import OPERATIONS, Operation
from tests.support import ROOT

URI = "@fiftyone-regioncap/regioncap"
FIELDS = ("prompts", "tracks", "captions", "regions")


@pytest.fixture(scope="module")
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path_factory: Any
) -> Iterator[fo.Dataset]:
    """A video with tracks and captions, and one whose file is gone."""
    patch = pytest.MonkeyPatch()
    patch.setenv("REGIONCAP_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(fo.config, "plugins_dir", str(ROOT))
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("failures", videos, prompts)
    api.propagate_and_caption(
        made.limit(1), propagator="flow", captioner="measured", progress=False
    )
    gone = made.last()
    gone.filepath = "/nowhere/gone.mp4"
    gone.save()
    yield made
    made.delete()
    patch.undo()


def shown(operation: str, dataset: fo.Dataset, **params: Any) -> str:
    """What the App shows at the end."""
    operator = foo.get_operator(f"{URI}/{operation}")
    context = ExecutionContext(
        {"dataset_name": dataset.name, "view": [], "params": params},
        executor=Executor(),
        operator_uri=operator.uri,
    )
    messages = list(operator.execute(context))
    text = messages[-1].body.params["results"]["summary"]
    return text.replace("\\", "")  # Markdown


def _with_fields() -> list[tuple[Operation, str]]:
    """Operations on videos, each with an option that names a field to read."""
    found = []
    for operation in OPERATIONS.values():
        named = [f.name for f in operation.fields if f.declaration.picker in FIELDS]
        if "video" in operation.media and named:
            found.append((operation, named[0]))
    return found


@pytest.mark.parametrize(
    ("operation", "option"),
    _with_fields(),
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_field_that_is_gone(
    dataset: fo.Dataset, operation: Operation, option: str, tmp_path: Path
) -> None:
    models = {
        "propagator": {"propagator": "flow"},
        "captioner": {"captioner": "measured"},
    }
    params: dict[str, Any] = {option: "frames.nothing_like_it", "query": "red"}
    for model in operation.models:
        if model.default is not None:
            params |= models[model.kind or model.name]
    if operation.name == "export":
        params |= {"format": "coco", "path": str(tmp_path / "out")}
    if operation.name == "evaluate_captions":
        params |= {"references": "captions"}
    text = shown(operation.operator, dataset, **params)
    assert text.startswith("**Failed.**"), text
    assert "Traceback" not in text and "not expected" not in text, text


def test_an_outcome_that_can_not_be_shown(
    dataset: fo.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(ctx: Any, outcome: Any) -> Iterator[Any]:
        yield ctx.ops.reload_dataset()
        raise TypeError("of another kind")

    operator = foo.get_operator(f"{URI}/extract_facets")
    plugin = sys.modules[type(operator).__module__]
    monkeypatch.setitem(plugin.AFTERWARDS, "extract_facets", show)
    text = shown("extract_facets", dataset, captions="captions")
    assert text.startswith("**Failed.**") and "of another kind" in text


@pytest.mark.parametrize(
    ("operation", "params", "says"),
    [
        (
            "propagate_masks",
            {"propagator_weights": "/nowhere/sam.pt"},
            "no weights at /nowhere/sam.pt",
        ),
        (
            "caption_tracks",
            {"captioner": "dam-video", "captioner_weights": "/nowhere/dam"},
            "no weights at /nowhere/dam",
        ),
        (
            "propagate_and_caption",
            {"propagator": "auto", "propagator_weights": "/nowhere/sam.pt"},
            "no weights at /nowhere/sam.pt",
        ),
        ("export_captions", {"format": "coco", "path": "FOLDER"}, "exists"),
        ("export_captions", {"format": "coco", "path": "here"}, "whole path"),
        ("import_captions", {"format": "coco", "path": "/nowhere"}, "/nowhere"),
        ("search_captions", {"query": "-red"}, "at least one word"),
        (
            "propagate_masks",
            {"propagator": "flow", "overwrite": True},
            "gone.mp4",
        ),
        ("propagate_from_here", {"propagator": "flow"}, "was edited"),
        ("propagate_masks", {"outputs": "x"}, "unknown option 'outputs'"),
    ],
)
def test_what_is_wrong_is_said(
    dataset: fo.Dataset, operation: str, params: dict[str, Any], says: str, tmp_path
) -> None:
    (tmp_path / "there.txt").write_text("of somebody else")
    params = {k: str(tmp_path) if v == "FOLDER" else v for k, v in params.items()}
    text = shown(operation, dataset, **params)
    assert says in text and "not expected" not in text, text


def test_failed_jobs_are_listed_with_their_error(
    dataset: fo.Dataset, tmp_path: Path
) -> None:
    (tmp_path / "there.txt").write_text("of somebody else")
    shown("export_captions", dataset, format="coco", path=str(tmp_path))
    shown("propagate_masks", dataset, propagator="flow", overwrite=True)
    newest, older = board.jobs(2, dataset._doc.id)
    assert older["name"] == "export" and older["state"] == "failed"
    assert "exists" in older["error"]
    assert newest["name"] == "propagate" and newest["state"] == "done"
    assert newest["failed"] == [dataset.last().id] and newest["fraction"] == 1
    assert "gone" in newest["summary"] and "gone.mp4" in newest["errors"][0]
