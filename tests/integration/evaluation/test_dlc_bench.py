"""DLC-Bench's scorer against cases scored by its authors' code, and bad judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fiftyone_regioncap.core.errors import FatalError
from fiftyone_regioncap.evaluation.benchmarks.base import Tools
from fiftyone_regioncap.evaluation.benchmarks.dlc_bench import (
    DLC_BENCH,
    PROMPT,
    parse_answer,
    recognition_question,
    region_of,
    score_region,
)
from fiftyone_regioncap.evaluation.benchmarks.judges import open_judge
from fiftyone_regioncap.evaluation.benchmarks.reading import BenchmarkError
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.evaluation.benchmarks.scoring import score_file
from tests.support.judge import endpoint

QUESTIONS = [
    {
        "question": "Which applies?",
        "type": "positive",
        "choices": [["No lid.", 0], ["A lid.", 0.5], ["A red lid.", 1]],
    },
    {
        "question": "And the spoon?",
        "type": "negative",
        "choices": [["It is not mentioned.", 1], ["It is mentioned.", -1]],
    },
]


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict:
    folder = golden / "dam" if (golden / "dam").is_dir() else golden
    path = folder / "dlc_scoring.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return json.loads(path.read_text())


class TestRecorded:
    def test_prompt(self, recorded: dict) -> None:
        ours = PROMPT.replace("{caption}", "{pred_caption}")
        ours = ours.replace("{question}", "{question_text_str}")
        assert ours == recorded["prompt_template"]

    def test_parsing(self, recorded: dict) -> None:
        for row in recorded["parse"]:
            if row["index"] == "raises IndexError":
                with pytest.raises(IndexError):
                    parse_answer(row["pred"], row["choices"])
            else:
                ours = parse_answer(row["pred"], row["choices"])
                assert ours == row["index"], row

    def test_recognition_questions(self, recorded: dict) -> None:
        for row in recorded["recognition_questions"]:
            assert recognition_question(row["class_name"]).text == row["question"]

    @pytest.mark.parametrize("name", ["wine glass", "glasses"])
    def test_plural_of_the_published_prompts(self, name: str) -> None:
        assert f"are {name} or objects" in recognition_question(name).text

    def test_scores(self, recorded: dict) -> None:
        scores = []
        for row in recorded["instances"]:
            region = region_of(row["key"], row["class_name"], row["questions"])
            first, second = region.questions[:2]
            assert first.prompt(row["pred"]) == row["prompt_first"]
            assert second.prompt(row["pred"]) == row["prompt_second"]
            score = score_region(region, row["responses"])
            expected = row["expected"]
            assert list(score.choices) == expected["pred_indices"]
            assert score.recognized == expected["recognition"]
            assert list(score.positives) == expected["pos_results"]
            assert list(score.negatives) == expected["neg_results"]
            assert score.score == pytest.approx(expected["score"])
            assert score.positive == pytest.approx(expected["score_pos"])
            assert score.negative == pytest.approx(expected["score_neg"])
            scores.append(score)
        aggregate = recorded["aggregate"]
        for name, key in (("positive", "avg_pos"), ("negative", "avg_neg")):
            known = [v for one in scores if (v := getattr(one, name)) is not None]
            assert sum(known) / len(known) == pytest.approx(aggregate[key])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    contents: dict[str, Any] = {
        "qa": {"7": QUESTIONS, "8": QUESTIONS[:1]},
        "class_names": {"7": "mug", "8": "glasses"},
        "captions": {"7": "A mug.", "8": "Red glasses.", "query": "Describe it."},
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def scored(files: Path, judge: str, **more: Any) -> BenchmarkReport:
    tools = Tools(files, judge=open_judge(judge, answers=files / "judge.jsonl"))
    return score_file(DLC_BENCH, files / "captions.json", tools, **more)


class TestRun:
    def test_endpoint_then_its_stored_answers(self, files: Path) -> None:
        with endpoint(lambda body: "A") as (url, asked):
            report = scored(files, url)
            assert len(asked) == 5
            assert {body["model"] for body in asked} == {"llama"}
            assert {body["temperature"] for body in asked} == {0}
            again = scored(files, url)
            assert len(asked) == 5 and again.judge["cached"] == 5
        values = [report.overall[n] for n in ("positive", "negative", "average")]
        assert values == [0, 1, 0.5]
        stored = scored(files, str(files / "judge.jsonl"))
        assert stored.overall == again.overall == report.overall

    def test_judgments_of_others(self, files: Path) -> None:
        """Found by their prompts, wherever in the file they are."""
        captions = {"7": "A mug.", "8": "Red glasses."}
        regions = [
            region_of("7", "mug", QUESTIONS),
            region_of("8", "glasses", QUESTIONS[:1]),
        ]
        stored = {
            region.key: {
                "score": 1,
                "details": [
                    {"prompt": q.prompt(captions[region.key]), "pred_answer": "A"}
                    for q in region.questions
                ],
            }
            for region in regions
        }
        (files / "theirs.json").write_text(json.dumps({**stored, "avg": 0.69}))
        assert scored(files, str(files / "theirs.json")).overall["average"] == 0.5

    @pytest.mark.parametrize(
        "answer", ["", "E", "e. none", "gibberish", "\n", "I cannot answer that", None]
    )
    def test_nonsense_gives_no_points(self, files: Path, answer: str | None) -> None:
        with endpoint(lambda body: answer) as (url, _):
            report = scored(files, url)
        assert report.overall["average"] == 0
        # Some nonsense holds the word "no", which the protocol takes for an answer.
        assert report.counts["unreadable"] >= 3
        assert report.counts["not_recognized"] == 2

    def test_a_gate_for_descriptions_of_something_else(self) -> None:
        region = region_of("7", "mug", QUESTIONS)
        assert score_region(region, ["No", "C", "A"]).score == 0
        assert score_region(region, ["No", "C", "B"]).negatives == (-1,)
        assert score_region(region, ["Yes", "C", "A"]).score == 1

    @pytest.mark.parametrize(
        "captions", [{"8": "x"}, {"7": "Error: no memory", "8": ""}]
    )
    def test_missing_captions(self, files: Path, captions: dict[str, str]) -> None:
        (files / "captions.json").write_text(json.dumps(captions))
        with endpoint(lambda body: "A") as (url, _):
            with pytest.raises(BenchmarkError, match="7 has no caption"):
                scored(files, url)
            assert scored(files, url, default="A thing.").overall["average"] == 0.5

    def test_answers_to_other_captions_are_not_taken(self, files: Path) -> None:
        with endpoint(lambda body: "A") as (url, _):
            scored(files, url)
        (files / "captions.json").write_text(json.dumps({"7": "A cup.", "8": "x"}))
        with pytest.raises(FatalError, match="about this caption"):
            scored(files, str(files / "judge.jsonl"))

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("qa", "["),
            ("qa", "[]"),
            ("qa", '{"9": []}'),
            ("qa", '{"7": [{"question": "x"}]}'),
            ("qa", '{"7": [{"question": "x", "type": "odd", "choices": [["a", 1]]}]}'),
            ("captions", None),
            ("class_names", None),
        ],
    )
    def test_files_of_another_form(
        self, files: Path, name: str, content: str | None
    ) -> None:
        path = files / f"{name}.json"
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        with (
            endpoint(lambda body: "A") as (url, _),
            pytest.raises(BenchmarkError),
        ):
            scored(files, url, default="x")
