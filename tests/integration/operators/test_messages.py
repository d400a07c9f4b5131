"""What operators tell a person: before a run, while it lasts, and after it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionContext, Executor

from fiftyone_regioncap import api
from fiftyone_regioncap.core.markdown import plain
from fiftyone_regioncap.core.progress import ProgressEvent
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.operations import OPERATIONS, Operation
from tests.support import ROOT

URI = "@fiftyone-regioncap/regioncap"
TEXTS = {"label", "description", "caption", "error_message", "title"}
FAST = {"propagator": "flow", "captioner": "measured"}


@pytest.fixture(scope="module")
def dataset(
    videos: list[Path], fiftyone_database: str, tmp_path_factory: Any
) -> Iterator[fo.Dataset]:
    """A video with two tracks and captions, and one whose file is gone."""
    patch = pytest.MonkeyPatch()
    patch.setenv("REGIONCAP_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(fo.config, "plugins_dir", str(ROOT))
    prompts = [
        Prompt(7, 3, box=(10, 20, 34, 44), label="disc"),
        Prompt(8, 3, box=(58, 40, 78, 56), label="brick"),
    ]
    made, _, _ = datasets.add_videos("messages", videos, prompts)
    api.propagate_and_caption(made.limit(1), progress=False, **FAST)
    for output in ("truth", "others"):
        api.caption(made.limit(1), captioner="measured", output=output, progress=False)
    gone = made.last()
    gone.filepath = "/nowhere/gone.mp4"
    gone.save()
    yield made
    made.delete()
    patch.undo()


def context(name: str, dataset: fo.Dataset | None, **params: Any) -> ExecutionContext:
    """What an operator is called with by the App."""
    request = {"view": [], "params": params}
    if dataset is not None:
        request["dataset_name"] = dataset.name
    return ExecutionContext(request, executor=Executor(), operator_uri=f"{URI}/{name}")


def operator(name: str) -> Any:
    """The operator."""
    return foo.get_operator(f"{URI}/{name}")


def form(name: str, dataset: fo.Dataset, **params: Any) -> dict[str, Any]:
    """The inputs of a form, by name."""
    inputs = operator(name).resolve_input(context(name, dataset, **params))
    return inputs.to_json()["type"]["properties"]


def messages(name: str, dataset: fo.Dataset, **params: Any) -> list[Any]:
    """What an operator tells the App while it runs."""
    return [m.body for m in operator(name).execute(context(name, dataset, **params))]


def texts(value: Any) -> Iterator[str]:
    """All texts that a form shows."""
    if isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in TEXTS and isinstance(inner, str):
                yield inner
            yield from texts(inner)


def buttons(value: Any) -> Iterator[dict[str, Any]]:
    """The buttons of what the App shows."""
    if isinstance(value, dict):
        if value.get("name") == "Button":
            yield value
        for inner in value.values():
            yield from buttons(inner)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda one: one.name)
def test_forms_say_what_can_be_done_in_the_app(
    dataset: fo.Dataset, operation: Operation
) -> None:
    chosen: list[dict[str, str]] = [{}]
    chosen += [{m.name: card} for m in operation.models for card in m.cards]
    shown = {
        text
        for params in chosen
        for text in texts(form(operation.operator, dataset, advanced=True, **params))
    }
    # None of our extras is on an index, and the SDK's and shell's words are theirs.
    theirs = re.compile(r"fiftyone-regioncap\[|\w=|--\w|`?\bregioncap \w+")
    assert shown and not [text for text in shown if theirs.search(text)]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, ["1 video, 2 objects, 24 frames", "1 complete video of `tracks` kept"]),
        ({}, ["2 in `captions` kept"]),
        ({"overwrite": True}, ["1 complete video of `tracks` made again"]),
        ({"overwrite": True}, ["2 of 2 in `captions` replaced, as their tracks"]),
        ({"overwrite_captions": True}, ["2 of 2 in `captions` replaced"]),
        ({"output": "frames.new", "captions": "said"}, ["new field `said`"]),
    ],
)
def test_a_form_says_what_is_kept_and_replaced(
    dataset: fo.Dataset, params: dict[str, Any], says: list[str]
) -> None:
    view = dataset.limit(1)
    asked = context("propagate_and_caption", dataset, **FAST, **params)
    asked.request_params["view"] = view._serialize()
    inputs = operator("propagate_and_caption").resolve_input(asked)
    text = inputs.to_json()["type"]["properties"]["preview"]["default"]
    assert all(said in text.replace("frames.", "") for said in says), text


def test_a_form_says_what_a_search_of_videos_keeps(
    dataset: fo.Dataset, videos: list[Path]
) -> None:
    own = fo.Dataset()
    own.add_samples([fo.Sample(filepath=str(path)) for path in videos[:2]])

    def said(name: str, **params: Any) -> str:
        return form(name, own, **params)["preview"]["default"]

    kept = (
        "1 complete video of `shots` kept as far as options are the same, 1 to do; "
        "labels that a person edited stay"
    )
    try:
        assert "Prompts: written to the new field `frames.prompts`" in said(
            "propose_objects"
        )
        assert "Shots: written to the new field `shots`" in said("find_shots")
        api.find_shots(own.limit(1), progress=False)
        own.reload()
        assert kept in said("find_shots")
        assert "1 complete video of `shots` made again" in said(
            "find_shots", overwrite=True
        )
    finally:
        own.delete()


def test_a_search_looks_at_the_whole_dataset_not_at_what_was_found(
    dataset: fo.Dataset,
) -> None:
    found = dataset.to_clips("captions")
    for view, scope in ((found, "BASE_VIEW"), (dataset.limit(1), "DATASET")):
        asked = context("search_captions", dataset)
        asked.request_params["view"] = view._serialize()
        inputs = operator("search_captions").resolve_input(asked).to_json()
        assert inputs["type"]["properties"]["view_target"]["default"] == scope


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("embed_captions", {"captions": "captions"}),
        ("check_captions", {"captions": "captions"}),
        ("triage_captions", {"captions": "captions", "score": "confidence"}),
        ("extract_facets", {"captions": "captions"}),
        ("search_captions", {"captions": "others", "query": "red"}),
        (
            "evaluate_captions",
            {"captions": "captions", "references": "truth", "metrics": ["rouge_l"]},
        ),
        ("propagate", {"propagator": "flow", "output": "frames.fresh"}),
    ],
)
def test_operations_tell_how_far_they_are(
    dataset: fo.Dataset, name: str, options: dict[str, Any]
) -> None:
    events: list[ProgressEvent] = []
    never = threading.Event()
    api.call(OPERATIONS[name], dataset.limit(1), options, events.append, never)
    assert events and all(event.message for event in events)
    if name == "propagate":
        assert events[0].message == "Loading the propagator flow"
        assert events[-1].fraction == 1


def test_a_summary_has_buttons_for_what_follows(dataset: fo.Dataset) -> None:
    last = messages("propagate_masks", dataset, propagator="flow", overwrite=True)[-1]
    found = {one["label"]: one for one in buttons(last.params["outputs"])}
    assert set(found) == {"Caption tracks", "Show 1 failed"}
    assert operator(found["Caption tracks"]["operator"].split("/")[-1])
    (stage,) = found["Show 1 failed"]["params"]["view"]
    assert dataset.last().id in str(stage)

    last = messages("caption_tracks", dataset, captioner="measured")[-1]
    found = {one["label"]: one for one in buttons(last.params["outputs"])}
    assert {"Review", "Search"} <= set(found)
    panels = {found[label]["params"]["name"] for label in ("Review", "Search")}
    known = {one.name for one in foo.list_operators(type="panel")}
    assert panels <= known

    last = messages("compare_captions", dataset, captioner="measured")[-1]
    found = {one["label"]: one for one in buttons(last.params["outputs"])}
    assert set(found) == {"Review", "Search", "Show 1 failed"}
    results = last.params["results"]
    assert "gone.mp4" in plain(results["summary"])
    assert (results["captions"], results["output"]) == ("captions", "captions_new")


def test_new_groups_of_the_sidebar_are_shown_at_once(dataset: fo.Dataset) -> None:
    def arranged() -> list[str]:
        told = messages("extract_facets", dataset, captions="others")
        return [
            group["name"]
            for one in told
            if getattr(one, "operator_uri", "").endswith("arrange_sidebar")
            for group in one.params["groups"]
        ]

    assert arranged() == ["others facets"]
    assert arranged() == []


def test_a_scheduled_failure_has_the_words_of_the_error(
    dataset: fo.Dataset, tmp_path: Path
) -> None:
    (tmp_path / "there.txt").write_text("of somebody else")
    export = operator("export_captions")
    export(dataset, delegate=True, format="coco", path=str(tmp_path))
    service = DelegatedOperationService()
    service.execute_queued_operations(limit=1, log=False)
    (done,) = service.list_operations(operator=export.uri)
    assert done.run_state == "failed"
    assert f"{tmp_path} exists" in done.result.error
    service.delete_operation(done.id)


def test_a_scheduled_job_ends_with_all_of_it_done(dataset: fo.Dataset) -> None:
    caption = operator("caption_tracks")
    view = dataset.limit(1)
    caption(view, delegate=True, captioner="measured", output="scheduled")
    service = DelegatedOperationService()
    service.execute_queued_operations(limit=1, log=False)
    (done,) = service.list_operations(operator=caption.uri)
    assert done.run_state == "completed", done.result.error
    assert done.status.progress == 1
    service.delete_operation(done.id)


def test_operators_have_icons_of_their_own(dataset: fo.Dataset) -> None:
    icons = [operator(o.operator).config.icon for o in OPERATIONS.values()]
    assert all(icons)


def test_buttons_above_the_grid_wait_for_what_they_need(
    dataset: fo.Dataset, videos: list[Path]
) -> None:
    bare = fo.Dataset()
    bare.add_sample(fo.Sample(filepath=str(videos[0])))

    def placed(one: fo.Dataset) -> set[str]:
        asked = context("propagate_masks", one)
        names = [operation.operator for operation in OPERATIONS.values()]
        return {name for name in names if operator(name).resolve_placement(asked)}

    try:
        assert placed(bare) == set()
        assert placed(dataset) >= {"propagate_masks", "search_captions"}
    finally:
        bare.delete()
