"""Every benchmark's metric against the scores of reference scorers on sample files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from fiftyone_regioncap.evaluation import captions
from fiftyone_regioncap.evaluation.benchmarks.base import Tools
from fiftyone_regioncap.evaluation.benchmarks.judges import (
    Judge,
    Question,
    open_judge,
)
from fiftyone_regioncap.evaluation.benchmarks.metrics import (
    first_words,
    google_rouge,
)
from fiftyone_regioncap.evaluation.benchmarks.plm_videobench import (
    RDCAP,
    RTLOC,
    events,
)
from fiftyone_regioncap.evaluation.benchmarks.predictions import Predictions
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.evaluation.benchmarks.scoring import score_file
from fiftyone_regioncap.models.endpoints import Completion
from fiftyone_regioncap.search import embedding

pytest.importorskip("pycocoevalcap", reason="the extra `metrics` is not installed")

with_java = pytest.mark.skipif(captions.java() is None, reason="Java is not installed")

NAMES = {
    "Bleu_1": "bleu_1",
    "Bleu_2": "bleu_2",
    "Bleu_3": "bleu_3",
    "Bleu_4": "bleu_4",
    "METEOR": "meteor",
    "ROUGE_L": "rouge_l",
    "CIDEr": "cider",
}


@pytest.fixture(scope="module")
def sample(samples: Path) -> Callable[[str], tuple[Path, Any]]:
    def find(name: str) -> tuple[Path, Any]:
        folder = samples / name
        if not folder.is_dir():
            pytest.skip(f"no folder {folder}")
        return folder, json.loads((folder / "expected.json").read_text())

    return find


@pytest.fixture(scope="module")
def embedder() -> Any:
    if embedding.missing(embedding.DEFAULT_MODEL):
        pytest.skip("the extra `search` is not installed")
    return embedding.load(embedding.DEFAULT_MODEL, "cpu")


def scored(name: str, folder: Path, predictions: Path, **tools: Any) -> BenchmarkReport:
    return score_file(BENCHMARKS[name], predictions, Tools(folder, **tools))


def close(value: Any) -> Any:
    return pytest.approx(value, abs=1e-6, rel=0)


def renamed(expected: dict[str, float]) -> dict[str, float]:
    return {NAMES[name]: value for name, value in expected.items()}


def taken(report: BenchmarkReport, names: Iterable[str]) -> dict[str, float]:
    return {name: report.overall[name] for name in names}


@pytest.mark.parametrize("answers", ["judge_answers", "judge_cache_reference_form"])
def test_dlc_bench(sample: Callable[[str], tuple[Path, Any]], answers: str) -> None:
    folder, expected = sample("dlc_bench")
    judge = open_judge(str(folder / f"{answers}.json"))
    report = scored("dlc-bench", folder, folder / "captions.json", judge=judge)
    assert taken(report, ("positive", "negative", "average")) == close(
        {
            "positive": expected["avg_pos"],
            "negative": expected["avg_neg"],
            "average": expected["avg"],
        }
    )
    regions = expected["regions"].values()
    assert report.counts["not_recognized"] == sum(not r["recognized"] for r in regions)
    unread = [chosen for r in regions for chosen in r["chosen"]].count(None)
    assert report.counts["unreadable"] == unread


def test_videorefer_bench_q(
    sample: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, expected = sample("videorefer_bench_q")
    for shard in folder.glob("predictions*"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    report = scored("videorefer-bench-q", folder, tmp_path)
    for kind, wanted in expected.items():
        name = kind.split()[0].lower()
        assert report.overall[name] == close(wanted["accuracy"])
        assert report.counts[f"{name}_asked"] == wanted["all"]


def test_videorefer_bench_d(sample: Callable[[str], tuple[Path, Any]]) -> None:
    folder, expected = sample("videorefer_bench_d")
    judged = folder / "judged.json"
    judge = open_judge(str(judged))
    report = scored("videorefer-bench-d", folder, judged, judge=judge)
    for name, wanted in expected["scores"].items():
        key = name.split()[0].lower()
        assert report.overall[key] == close(wanted["mean"])
        assert report.counts[f"{key}_judged"] == wanted["judged"]
    assert report.overall["average"] == close(expected["average"])


@pytest.mark.parametrize("name", ["hc-stvg", "vg-regions", "ref-l4"])
@with_java
def test_captions_of_regions(
    sample: Callable[[str], tuple[Path, Any]], name: str
) -> None:
    folder, expected = sample(
        {"hc-stvg": "hc_stvg", "vg-regions": "vg_region", "ref-l4": "ref_l4"}[name]
    )
    predictions = folder / "predictions.jsonl"
    report = scored(name, folder, predictions)
    wanted = renamed(expected["overall"])
    assert taken(report, wanted) == close(wanted)
    with Predictions(predictions) as found:
        said = [one.text for one in found.pair(BENCHMARKS[name].load(folder))]
    assert [first_words(text) for text in said] == expected["submitted"]
    each = [score["METEOR"] for score in expected["each"].values()]
    assert list(report.each.values()) == close(each)


@with_java
def test_refcocog(sample: Callable[[str], tuple[Path, Any]]) -> None:
    folder, expected = sample("refcocog")
    report = scored("refcocog", folder, folder / "predictions.json")
    single = renamed(expected["one_item_an_expression"])
    assert taken(report, single) == close(single)
    together = {
        f"{name}_together": value
        for name, value in renamed(expected["references_of_a_region_together"]).items()
    }
    assert taken(report, together) == close(together)


@pytest.mark.parametrize("name", ["lvis", "paco"])
def test_keywords(
    sample: Callable[[str], tuple[Path, Any]], name: str, embedder: Any
) -> None:
    folder, expected = sample(f"{name}_keywords")
    report = scored(
        f"{name}-keywords", folder, folder / "predictions.jsonl", embedder=embedder
    )
    for prefix, key in (("", "pixelrefer"), ("osprey_", "osprey")):
        wanted = expected[key]
        # Similarities depend on the machine's arithmetic.
        assert report.overall[f"{prefix}similarity"] == pytest.approx(
            wanted["sim"], abs=1e-4
        )
        assert report.overall[f"{prefix}semantic_iou"] == close(wanted["siou"])


def test_ovad(sample: Callable[[str], tuple[Path, Any]]) -> None:
    folder, expected = sample("ovad")
    report = scored("ovad", folder, folder / "predictions.json")
    for group, value in expected["ap_x100_by_group"].items():
        if value is None:
            assert group not in report.overall
        else:
            assert 100 * report.overall[group] == close(value)
    for attribute, value in expected["ap_x100_by_attribute"].items():
        if value is None:
            assert f"attribute {attribute}" not in report.overall
        else:
            assert 100 * report.overall[f"attribute {attribute}"] == close(value)


def test_coco_recognition(sample: Callable[[str], tuple[Path, Any]]) -> None:
    folder, expected = sample("coco_recognition")
    report = scored("coco-recognition", folder, folder / "logits.json")
    assert taken(report, ("map", "ap50", "ap75", "accuracy")) == close(
        {
            "map": expected["mAP"],
            "ap50": expected["AP50"],
            "ap75": expected["AP75"],
            "accuracy": expected["accuracy"],
        }
    )


@pytest.mark.parametrize("name", ["vg-dense", "vg-dense"])
@with_java
def test_dense_captioning(
    sample: Callable[[str], tuple[Path, Any]], tmp_path: Path, name: str
) -> None:
    folder, expected = sample("dense_captioning")
    (annotations,) = folder.glob("annotations*")
    (tmp_path / annotations.name).write_bytes(annotations.read_bytes())
    report = scored(name, tmp_path, folder / "detections.json")
    # The reference sums in float32.
    assert report.overall["map"] == pytest.approx(expected["map"], abs=1e-5)
    assert report.overall["detection_map"] == pytest.approx(
        expected["detmap"], abs=1e-5
    )
    for cell, value in expected["ap_breakdown"].items():
        _, iou, _, score = cell.split("_")
        ours = f"iou {float(iou)}, meteor {float(score)}"
        if ours in report.overall:
            assert report.overall[ours] == pytest.approx(value, abs=1e-5)


@pytest.fixture
def plm(sample: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> Any:
    folder, expected = sample("plm_videobench")
    predictions = json.loads((folder / "predictions.json").read_text())
    for task, own in predictions.items():
        (tmp_path / f"{task}.json").write_text(json.dumps(own))
    return folder, expected, tmp_path


def test_plm_rcap(plm: Any) -> None:
    folder, expected, predictions = plm
    judge = open_judge(str(folder / "judge_rcap.json"))
    report = scored("plm-rcap", folder, predictions / "rcap.json", judge=judge)
    wanted = expected["aggregate"]["rcap"]
    assert report.overall["score"] == close(wanted["llm_judge_score"])
    assert report.overall["success_rate"] == close(wanted["success_rate"])
    for item in BENCHMARKS["plm-rcap"].load(folder):
        own = expected["rcap"][item.id]
        assert report.each[item.id] == close(own["score"])
        first, last, total = own["prompt_frames"]
        assert item.values["spans"] == [[first, last]]
        asked = item.values["question"]
        assert f"[{first}, {last}]" in asked and f"{total} frame" in asked


def test_plm_rdcap(plm: Any) -> None:
    folder, expected, predictions = plm
    stored = json.loads((folder / "judge_rdcap_scores_gt_by_pred.json").read_text())
    ratings = {
        uid: iter([score for row in rows for score in row])
        for uid, rows in stored.items()
    }

    def ask(question: Question) -> Completion:
        return Completion(json.dumps({"score": 10 * next(ratings[question.item])}))

    judge = Judge(ask, workers=1)
    report = scored("plm-rdcap", folder, predictions / "rdcap.json", judge=judge)
    said = json.loads((predictions / "rdcap.json").read_text())
    for item in RDCAP.load(folder):
        own = expected["rdcap"][item.id]
        found = events(said[item.id])
        assert [span for span, _ in found] == own["segments"]
        assert [text for _, text in found] == own["captions"]
        if "gt_segments" in own:
            assert item.values["spans"] == own["gt_segments"]
        assert report.each[item.id] == close(own["SODA_c"])
    assert report.overall["soda_c"] == close(
        sum(own["SODA_c"] for own in expected["rdcap"].values())
        / len(expected["rdcap"])
    )


def test_plm_rtloc(plm: Any) -> None:
    folder, expected, predictions = plm
    report = scored("plm-rtloc", folder, predictions / "rtloc.json")
    wanted = expected["aggregate"]["rtloc"]
    assert report.overall["mean_precision"] == close(wanted["mean_precision"])
    assert report.overall["mean_recall"] == close(wanted["mean_recall"])
    for item in RTLOC.load(folder):
        own = expected["rtloc"][item.id]
        assert item.values["spans"] == [own["target"]]
        assert report.each[item.id] == close(own["mIOU"])
    unread = sum(own["parse_error"] for own in expected["rtloc"].values())
    assert report.counts["unreadable"] == unread


@with_java
def test_ureca(sample: Callable[[str], tuple[Path, Any]]) -> None:
    folder, expected = sample("ureca_testset")
    report = scored("ureca", folder, folder / "predictions.json")
    own = expected["pycocoevalcap"]
    assert [report.overall[f"bleu_{n}"] for n in range(1, 5)] == close(own["bleu"])
    assert report.overall["rouge_l"] == close(own["rouge_l"])
    assert report.overall["meteor"] == close(own["meteor"])
    google = expected["google_rouge_score_rougeL_f_stemmed"]
    assert report.overall["google_rouge_l"] == close(google["mean"])
    with Predictions(folder / "predictions.json") as found:
        answers = list(found.pair(BENCHMARKS["ureca"].load(folder)))
    pairs = [(one.text, one.item.references[0]) for one in answers]
    assert google_rouge(pairs) == close(google["each"])
