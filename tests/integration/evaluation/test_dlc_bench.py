"""DLC-Bench's scorer against cases scored by its authors' code, and bad judges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.evaluation.dlc_bench import (
    PROMPT,
    CachedJudge,
    DLCBenchError,
    Report,
    evaluate,
    parse_answer,
    recognition_question,
    region_of,
    run,
    score_region,
)

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

    @pytest.mark.parametrize("name", ["judge_answers", "judge_cache_reference_form"])
    def test_stored_answers(self, samples: Path, name: str) -> None:
        """Ours, and the published form: parallel lists of prompts and responses."""
        folder = samples / "dlc_bench"
        report = run(
            folder / "captions.json", folder / "qa.json", str(folder / f"{name}.json")
        )
        expected = json.loads((folder / "expected.json").read_text())
        assert report.positive == pytest.approx(expected["avg_pos"], abs=1e-9)
        assert report.negative == pytest.approx(expected["avg_neg"], abs=1e-9)
        assert report.average == pytest.approx(expected["avg"], abs=1e-9)
        for region in report.regions:
            wanted = expected["regions"][region.key]
            assert region.recognized == wanted["recognized"]
            assert list(region.choices) == wanted["chosen"]
            assert region.positive == pytest.approx(wanted["score_pos"])

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
        report, aggregate = Report(tuple(scores)), recorded["aggregate"]
        assert report.positive == pytest.approx(aggregate["avg_pos"])
        assert report.negative == pytest.approx(aggregate["avg_neg"])
        assert report.average == pytest.approx(aggregate["avg"])


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


def yes(region: object, prompt: str) -> str:
    return "A"


@contextmanager
def endpoint(answer: Any) -> Iterator[tuple[str, list[dict]]]:
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"data": [{"id": "llama"}]})

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            asked.append(json.loads(self.rfile.read(length)))
            self.reply(answer)

        def reply(self, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def said(text: Any) -> dict:
    return {"choices": [{"message": {"content": text}}]}


class TestRun:
    def test_endpoint_then_cache(self, files: Path) -> None:
        paths = files / "captions.json", files / "qa.json"
        store = files / "answers.json"
        with endpoint(said("A")) as (url, asked):
            report = run(*paths, url, cache_file=store)
            assert len(asked) == 5
            assert {body["model"] for body in asked} == {"llama"}
            assert {body["temperature"] for body in asked} == {0}
            again = run(*paths, url, cache_file=store)
            assert len(asked) == 5
        assert (report.positive, report.negative, report.average) == (0, 1, 0.5)
        assert again == run(*paths, str(store)) == report
        assert "0.000, 1.000, 0.500" in str(report)

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
        report = run(
            files / "captions.json", files / "qa.json", str(files / "theirs.json")
        )
        assert report.average == 0.5

    @pytest.mark.parametrize(
        "answer", ["", "E", "e. none", "gibberish", "\n", "I cannot answer that", None]
    )
    def test_nonsense_gives_no_points(self, files: Path, answer: str | None) -> None:
        with endpoint(said(answer)) as (url, _):
            report = run(files / "captions.json", files / "qa.json", url)
        assert report.average == 0
        # Some nonsense holds the word "no", which the protocol takes for an answer.
        assert report.unreadable >= 3
        assert report.unrecognized == 2

    @pytest.mark.parametrize("answer", [{}, {"choices": []}, [], {"error": "x"}])
    def test_no_answer_at_all(self, files: Path, answer: Any) -> None:
        with (
            endpoint(answer) as (url, _),
            pytest.raises(BackendError, match="OpenAI-compatible"),
        ):
            run(files / "captions.json", files / "qa.json", url)

    def test_nobody_there(self, monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        with pytest.raises(BackendError, match="no connection"):
            run(files / "captions.json", files / "qa.json", "http://127.0.0.1:9/v1")

    def test_a_gate_for_descriptions_of_something_else(self) -> None:
        region = region_of("7", "mug", QUESTIONS)
        assert score_region(region, ["No", "C", "A"]).score == 0
        assert score_region(region, ["No", "C", "B"]).negatives == (-1,)
        assert score_region(region, ["Yes", "C", "A"]).score == 1

    def test_missing_captions(self) -> None:
        regions = [region_of("7", "mug", QUESTIONS)]
        for captions in ({}, {"7": "Error: no memory"}):
            with pytest.raises(DLCBenchError, match="region 7 has no caption"):
                evaluate(regions, captions, yes)
            assert evaluate(regions, captions, yes, default="A thing.").average == 0.5

    def test_answers_to_other_captions_are_not_taken(self, files: Path) -> None:
        regions = [region_of("7", "mug", QUESTIONS)]
        judge = CachedJudge({}, yes)
        evaluate(regions, {"7": "A mug."}, judge)
        stored = CachedJudge(judge.answers)
        assert evaluate(regions, {"7": "A mug."}, stored).average == 0.5
        with pytest.raises(DLCBenchError, match="no answer"):
            evaluate(regions, {"7": "A cup."}, stored)

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
        with pytest.raises(DLCBenchError):
            run(files / "captions.json", files / "qa.json", str(files / "none.json"))
