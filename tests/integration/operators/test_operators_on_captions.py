"""The operators that search, map, sort, check and evaluate captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.executor import ExecutionContext, Executor

from fiftyone_regioncap import api
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from tests.support import ROOT

URI = "@fiftyone-regioncap/regioncap"
NAMES = (
    "search_captions",
    "embed_captions",
    "extract_facets",
    "check_captions",
    "triage_captions",
    "evaluate_captions",
)


@pytest.fixture(autouse=True)
def plugin(fiftyone_database: str, tmp_path: Path, monkeypatch) -> Iterator[None]:
    """FiftyOne finds this plugin, and the cache is of this test alone."""
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path))
    before = fo.config.plugins_dir
    fo.config.plugins_dir = str(ROOT)
    yield
    fo.config.plugins_dir = before


@pytest.fixture
def dataset() -> Iterator[fo.Dataset]:
    dataset = fo.Dataset()
    for number, text in enumerate(("A red car turning left.", "A blue truck into the")):
        sample = fo.Sample(filepath=f"/nowhere/{number}.mp4")
        dataset.add_sample(sample)
        record = CaptionRecord(1, (0, 9), label="thing", caption=text)
        write_captions(sample, "captions", [record])
        truth = CaptionRecord(1, (0, 9), caption="A red car.")
        write_captions(sample, "truth", [truth])
    yield dataset
    dataset.delete()


def form(name: str, dataset: fo.Dataset, **params: Any) -> dict[str, Any]:
    operator = foo.get_operator(f"{URI}/{name}")
    context = ExecutionContext(
        {"dataset_name": dataset.name, "view": [], "params": params},
        operator_uri=operator.uri,
    )
    return operator.resolve_input(context).to_json()["type"]["properties"]


def execute(name: str, dataset: fo.Dataset, **params: Any) -> Any:
    """What the App shows at the end."""
    operator = foo.get_operator(f"{URI}/{name}")
    context = ExecutionContext(
        {"dataset_name": dataset.name, "view": [], "params": params},
        executor=Executor(),
        operator_uri=operator.uri,
    )
    messages = list(operator.execute(context))
    if name == "search_captions":  # which shows a view in place of a summary
        return api.search_captions(dataset, progress=False, **params).to_dict()
    return messages[-1].body.params["results"]


@pytest.mark.parametrize("name", NAMES)
def test_without_captions_the_form_says_what_to_do_first(name):
    empty = fo.Dataset()
    empty.media_type = "video"
    inputs = form(name, empty)
    assert inputs["refusal"]["invalid"]
    first = "Caption tracks or regions first"
    assert first in inputs["refusal"]["error_message"]
    empty.delete()


@pytest.mark.parametrize("name", NAMES)
def test_with_captions_the_form_asks_for_their_field(name, dataset):
    inputs = form(name, dataset)
    assert inputs["captions"]["default"] == "captions"
    assert not any(value.get("invalid") for value in inputs.values())


def test_a_query_for_nothing_is_told_in_the_form(dataset):
    refusal = form("search_captions", dataset, query="-red")["refusal"]
    assert "at least one word" in refusal["error_message"]


def test_searching_writes_scores_and_gives_the_hits(dataset):
    found = execute(
        "search_captions",
        dataset,
        captions="captions",
        query="red cars",
        k=25,
        mode="text",
        score_field="search_score",
    )
    assert [hit["caption"] for hit in found["hits"]] == ["A red car turning left."]
    dataset.reload()
    scores = dataset.values("captions.detections.search_score", unwind=True)
    assert scores[0] > 0 and scores[1] is None


def test_facets_checks_and_scores_come_with_a_summary(dataset):
    assert (
        "2 captions"
        in execute("extract_facets", dataset, captions="captions")["summary"]
    )
    assert (
        "**1** of 2"
        in execute("check_captions", dataset, captions="captions")["summary"]
    )
    pytest.importorskip("pycocoevalcap", reason="the extra is not installed")
    scores = execute(
        "evaluate_captions",
        dataset,
        captions="captions",
        references="truth",
        metrics=["rouge_l"],
        key="caption_eval",
    )
    assert scores["count"] == 2 and "rouge_l" in scores["summary"]


def test_looks_are_offered_where_regions_were_embedded(dataset, seen):
    def choices(name: str, parameter: str, **params: Any) -> list[str]:
        given = form(name, dataset, **params).get(parameter)
        return given["type"]["values"] if given else []

    texts = ("a red car", "a blue truck")
    for sample, text in zip(dataset, texts, strict=True):
        write_captions(sample, "captions", [seen(1, f"It is {text}.", text)])
    dataset.reload()
    assert "visual" in choices("search_captions", "mode")
    assert choices("embed_captions", "space") == ["text", "visual"]
    options = {"captions": "captions", "query": texts[1], "k": 5}
    found = execute("search_captions", dataset, mode="visual", **options)
    assert found["hits"][0]["caption"] == "It is a blue truck."
    made = execute("embed_captions", dataset, captions="captions", space="visual")
    assert made["space"] == "visual" and made["captions"] == 2
    checked = execute("check_captions", dataset, captions="captions", similarity=True)
    assert checked["by_check"]["similarity"] == 0
    dataset.reload()
    scores = choices("triage_captions", "score")
    assert scores[:2] == ["confidence", "image_text_similarity"]
    sorted_ = execute(
        "triage_captions",
        dataset,
        captions="captions",
        score="image_text_similarity",
        keep=-1.0,
        drop=-1.0,
    )
    assert sorted_["counts"]["keep"] == 2


def test_operators_can_be_called_from_python(dataset):
    results = foo.get_operator(f"{URI}/search_captions")(dataset, "truck", mode="text")
    assert len(results) == 1
    assert foo.get_operator(f"{URI}/check_captions")(dataset).failed == 1
