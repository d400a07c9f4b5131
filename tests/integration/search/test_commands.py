from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions

VIDEOS = (["A red car turning left", "A blue truck into the"], ["Two red cars."])


def run(name, *arguments):
    result = CliRunner().invoke(main, [*name.split(), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_search_prints_and_saves_what_it_finds(described):
    dataset = described(*VIDEOS)
    arguments = ("--dataset", dataset.name, "--mode", "text", "red cars")
    shown = run("search", *arguments)
    assert "Two red cars." in shown and "/nowhere/1.mp4" in shown
    document = json.loads(run("search", *arguments, "--json", "--save", "found"))
    assert {hit["caption"] for hit in document["hits"]} == {VIDEOS[0][0], VIDEOS[1][0]}
    dataset.reload()
    assert len(dataset.load_saved_view("found")) == 2
    assert "nothing found" in run("search", *arguments[:4], "zebra")


def test_check_counts_what_fails(described):
    dataset = described(*VIDEOS)
    assert "1 of 3 captions failed" in run("check", "--dataset", dataset.name)
    document = json.loads(run("check", "--dataset", dataset.name, "--json"))
    assert document["by_check"]["truncation"] == 1


def test_regions_are_found_mapped_and_compared_by_looks(described, seen):
    texts = [f"a {word} car" for word in ("red", "green", "small", "very old")]
    dataset = described([seen(n, f"Thing {n}.", text) for n, text in enumerate(texts)])
    on = ("--dataset", dataset.name)
    document = json.loads(run("search", *on, "--mode", "visual", "--json", texts[2]))
    assert document["hits"][0]["caption"] == "Thing 2."
    options = ("--space", "visual", "--layout", "pca")
    shown = run("embed-captions", *on, *options)
    assert "4 captions on the map captions_visual_map" in shown
    summary = json.loads(run("embed-captions", *on, *options, "--json"))
    assert summary["space"] == "visual" and summary["captions"] == 4
    assert "half under" in run("check", *on, "--similarity")
    thresholds = ("--keep", "2", "--drop", "1")
    shown = run("triage", *on, "--score", "image_text_similarity", *thresholds)
    assert "4 drop (0 of them reviewed)" in shown and "nobody knows" in shown
    assert json.loads(run("triage", *on, "--json"))["counts"]["review"] == 4


def test_evaluate_captions_writes_its_files(described, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="the extra is not installed")
    dataset = described(*VIDEOS)
    for sample in dataset:
        truth = [CaptionRecord(1, (0, 9), caption="A red car.")]
        write_captions(sample, "truth", truth)
    shown = run(
        "evaluate captions",
        *("--dataset", dataset.name, "--references", "truth", "--metrics", "rouge_l"),
        *("--output", str(tmp_path)),
    )
    assert "2 captions compared" in shown
    assert {path.suffix for path in tmp_path.glob("caption_eval.*")} == {
        ".json",
        ".md",
        ".html",
    }
