"""Judges that are killed, bad predictions, many of them, and sweeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap import api
from fiftyone_regioncap.core.errors import BackendError, FatalError, OptionError
from fiftyone_regioncap.core.markdown import plain
from fiftyone_regioncap.evaluation.benchmarks import datasets
from fiftyone_regioncap.evaluation.benchmarks.base import Tools
from fiftyone_regioncap.evaluation.benchmarks.judges import (
    AnswerFile,
    Judge,
    Question,
    open_judge,
)
from fiftyone_regioncap.evaluation.benchmarks.metrics import bert_score
from fiftyone_regioncap.evaluation.benchmarks.reading import BenchmarkError
from fiftyone_regioncap.evaluation.benchmarks.ref_l4 import likelihood
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.evaluation.benchmarks.scoring import score_file
from fiftyone_regioncap.models.endpoints import Completion
from tests.support.judge import endpoint


def questions(folder: Path, count: int) -> Path:
    """Writes VideoRefer-Bench-D of some objects, and descriptions of them."""
    folder.mkdir(exist_ok=True)
    entries = [
        {
            "id": number,
            "video": f"{number}.mp4",
            "caption": f"thing {number}",
            "frame_idx": "0",
            "annotation": [],
        }
        for number in range(count)
    ]
    (folder / "VideoRefer-Bench-D.json").write_text(json.dumps(entries))
    lines = [{"id": n, "pred": f"a thing {n}"} for n in range(count)]
    path = folder / "said.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


RATINGS = "\n".join(
    f"{number}. {name}: 4"
    for number, name in enumerate(
        (
            "Subject Correspondence",
            "Appearance Description",
            "Temporal Description",
            "Hallucination Detection",
        ),
        1,
    )
)

SCRIPT = """
import sys
from pathlib import Path
from fiftyone_regioncap.evaluation.benchmarks.base import Tools
from fiftyone_regioncap.evaluation.benchmarks.judges import open_judge
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS
from fiftyone_regioncap.evaluation.benchmarks.scoring import score_file

url, folder = sys.argv[1], Path(sys.argv[2])
judge = open_judge(url, answers=folder / "judge.jsonl", workers=2)
score_file(
    BENCHMARKS["videorefer-bench-d"], folder / "said.jsonl", Tools(folder, judge=judge)
)
"""


def test_a_killed_run_asks_nothing_twice(tmp_path: Path) -> None:
    said = questions(tmp_path, 30)
    hold = threading.Event()

    def answer(body: dict[str, Any]) -> str:
        if len(asked) > 12:
            hold.wait(60)  # these never reach the first run
        return RATINGS

    with endpoint(answer) as (url, asked):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, url, str(tmp_path)])
        answers = tmp_path / "judge.jsonl"
        for _ in range(600):
            if answers.exists() and len(answers.read_bytes().splitlines()) >= 12:
                break
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        hold.set()
        kept = len(answers.read_bytes().splitlines())
        with answers.open("ab") as file:
            file.write(b'{"key": "cut of')  # as a kill may leave it
        before = len(asked)
        judge = open_judge(url, answers=answers)
        tools = Tools(tmp_path, judge=judge)
        report = score_file(BENCHMARKS["videorefer-bench-d"], said, tools)
        assert report.overall["average"] == 4
        assert len(asked) - before == 30 - kept == judge.usage.calls
        assert judge.usage.cached == kept >= 12
        assert judge.usage.input_tokens == 10 * judge.usage.calls
        assert judge.usage.cost((1e6, 2e6)) == judge.usage.calls * (10 + 4)
        again = open_judge(url, answers=answers)
        score_file(BENCHMARKS["videorefer-bench-d"], said, Tools(tmp_path, judge=again))
        assert again.usage.calls == 0 and again.usage.cached == 30


def test_unreadable_answers_are_asked_for_again(tmp_path: Path) -> None:
    answers = iter(["", "", "fine"])
    judge = Judge(lambda question: Completion(next(answers)))
    ((_, found),) = judge.each([("x", [Question("?", tries=5)])])
    assert found == ["fine"] and judge.usage.calls == 3


@pytest.mark.parametrize(
    ("failing", "raised"),
    [
        pytest.param({1}, None, id="one without an answer"),
        pytest.param({1, 2, 3}, BackendError, id="gone"),
    ],
)
def test_a_judge_that_fails(failing: set[int], raised: Any) -> None:
    def ask(question: Question) -> Completion:
        if int(question.text) in failing:
            raise BackendError("no answer")
        return Completion(question.text)

    judge = Judge(ask, workers=1)
    asked = [(number, [Question(str(number))]) for number in range(5)]
    if raised is None:
        found = {number: said for number, (said,) in judge.each(asked)}
        assert found == {0: "0", 1: None, 2: "2", 3: "3", 4: "4"}
        assert judge.usage.failed == 1
    else:
        with pytest.raises(raised):
            list(judge.each(asked))


def test_an_address_that_refuses_ends_it_at_once() -> None:
    def ask(question: Question) -> Completion:
        raise FatalError("no such model")

    with pytest.raises(FatalError):
        list(Judge(ask).each([(0, [Question("a")])]))


def test_answers_of_another_model_are_not_taken(tmp_path: Path) -> None:
    answers = AnswerFile(tmp_path / "judge.jsonl")
    for model in ("one", "other"):
        judge = Judge(lambda question: Completion("x"), model, answers=answers)
        list(judge.each([(0, [Question("a")])]))
        assert judge.usage.calls == 1


def keywords(folder: Path, predictions: Any) -> Callable[[], BenchmarkReport]:
    """Writes LVIS keywords of three objects, and predictions."""
    image = {
        "file_name": "1.jpg",
        "categories": ["cat", "dog", "dog"],
        "annotations": [{"segmentation": [[0, 0, 5, 0, 5, 5]]}] * 3,
    }
    (folder / "lvis_val.json").write_text(json.dumps([image]))
    path = folder / "said.json"
    text = predictions if isinstance(predictions, str) else json.dumps(predictions)
    path.write_text(text)
    tools = Tools(folder, embedder=Letters())
    return lambda: score_file(BENCHMARKS["lvis-keywords"], path, tools)


class Letters:
    """Embeds a text by the letters that it has."""

    name, dimension = "letters", 27

    def embed(self, texts: Any) -> np.ndarray:
        rows = np.array(
            [[1, *(text.count(chr(97 + n)) for n in range(26))] for text in texts],
            np.float32,
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("predictions", "counts"),
    [
        pytest.param({"0": "cat", "1": "dog", "2": "dog"}, {}, id="all"),
        pytest.param({"0": "cat", "1": "dog"}, {"missing": 1}, id="one missing"),
        pytest.param(
            {"0": "cat", "1": "dog", "2": "x", "99": "x"}, {"unknown": 1}, id="unknown"
        ),
        pytest.param(
            '{"0": "cat", "0": "dog", "1": "dog", "2": "dog"}',
            {"doubled": 1},
            id="doubled in an object",
        ),
        pytest.param(
            [{"id": 0, "pred": "a"}] * 2 + [{"id": n, "pred": "a"} for n in (1, 2)],
            {"doubled": 1},
            id="doubled in a list",
        ),
        pytest.param(
            [{"Answer": "dog", "pred": "b"}, {"Answer": "cat", "pred": "a"}],
            {"missing": 1},
            id="by the reference, in another order",
        ),
        pytest.param(
            [{"id": n, "pred": "", "error": "no memory"} for n in (0, 1, 2)],
            {"failed": 3},
            id="failed",
        ),
    ],
)
def test_predictions_with_problems(
    tmp_path: Path, predictions: Any, counts: dict[str, int]
) -> None:
    report = keywords(tmp_path, predictions)()
    assert report.items == 3
    known = ("missing", "unknown", "doubled", "failed")
    assert {n: c for n, c in report.counts.items() if n in known} == counts
    text = plain(report.to_markdown())
    for problem in counts:
        assert report.first[problem] and f"{problem}: " in text


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        pytest.param({"7": "cat"}, "no prediction is for an item", id="none of them"),
        pytest.param("[1, 2]", "no JSON object", id="numbers"),
        pytest.param("[", "cannot be read as JSON", id="no JSON"),
        pytest.param([{"pred": "x"}], "without an id", id="no id"),
        pytest.param({"0": ["x"], "1": "a", "2": "b"}, "is no text", id="lists"),
    ],
)
def test_files_that_are_no_predictions(
    tmp_path: Path, predictions: Any, message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        keywords(tmp_path, predictions)()


def test_a_missing_file_says_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"sunshine-lwt/Osprey.*CC BY 4\.0"):
        score_file(BENCHMARKS["paco-keywords"], tmp_path, Tools(tmp_path))


def test_another_version_of_the_files(tmp_path: Path, fiftyone_database: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    keywords(folder, {"0": "cat"})
    Image.new("RGB", (8, 8)).save(folder / "1.jpg")
    made = api.prepare_benchmark("lvis-keywords", str(folder), overwrite=True)
    assert made.items == 3
    with (folder / "lvis_val.json").open("a") as file:
        file.write("\n")
    with pytest.raises(BenchmarkError, match="another version"):
        api.score_benchmark("lvis-keywords", str(folder / "said.json"))


def test_predictions_without_ids_are_kept_with_a_prepared_dataset(
    tmp_path: Path, fiftyone_database: str
) -> None:
    """Published files name an item by its answer and its picture."""
    folder = tmp_path / "files"
    folder.mkdir()
    animals = ("cat", "dog", "dog")
    said = [{"Answer": one, "pred": f"a {one}", "image": "1.jpg"} for one in animals]
    score = keywords(folder, said)
    Image.new("RGB", (8, 8)).save(folder / "1.jpg")
    made = api.prepare_benchmark("lvis-keywords", str(folder), overwrite=True)
    report = replace(score(), dataset=made.dataset)
    datasets.store(report, folder / "said.json")
    (kept,) = fo.load_dataset(made.dataset).values("truth.detections.benchmark_caption")
    assert kept == [f"a {one}" for one in animals]


def test_many_predictions_in_little_memory(tmp_path: Path) -> None:
    """Memory grows by an index of ids alone, not by texts and answers."""

    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        said = questions(folder, count)
        long = " ".join(["word"] * 300)
        lines = [{"id": n, "pred": f"{n} {long}"} for n in range(count)]
        said.write_text("".join(json.dumps(line) + "\n" for line in lines))
        entries = json.loads((folder / "VideoRefer-Bench-D.json").read_text())
        (folder / "VideoRefer-Bench-D.json").write_text(
            "".join(json.dumps(entry) + "\n" for entry in entries)
        )
        answers = AnswerFile(folder / "judge.jsonl")
        judge = Judge(lambda question: Completion(RATINGS), answers=answers)
        tracemalloc.start()
        report = score_file(
            BENCHMARKS["videorefer-bench-d"], said, Tools(folder, judge=judge)
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert report.items == count == judge.usage.calls
        return most

    few, many = peak(100), peak(3000)
    texts = 2900 * 300 * len("word ")
    assert many - few < texts / 2


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"score": 80, "reason": "x"}', 0.8),
        ('Sure: {"score": 80} ok', 0.8),
        ("about 75 of 100", 0.75),
        ("0.5", 0.5),
        ('{"reason": "none"}', None),
        ("nothing", None),
    ],
)
def test_clair_reads_answers(answer: str, value: float | None) -> None:
    assert likelihood(answer) == value


def test_sweep(tmp_path: Path, fiftyone_database: str, samples: Path) -> None:
    source = samples / "vg_region"
    if not source.is_dir():
        pytest.skip(f"no folder {source}")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "vg_val.json").write_bytes((source / "vg_val.json").read_bytes())
    for item in BENCHMARKS["vg-regions"].load(folder):
        path = folder / item.media
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 60)).save(path)
    with endpoint(lambda body: f"of {body['max_tokens']} words") as (url, asked):
        sweep = api.sweep_benchmark(
            "vg-regions",
            {"max_tokens": [5, 7], "prompt": "short,detailed"},
            folder=str(folder),
            metrics=("rouge_l",),
            limit=2,
            output=str(tmp_path / "out"),
            captioner="openai",
            captioner_weights=url,
            captioner_options={"model": "stand-in"},
            progress=False,
        )
    assert [values for values, _ in sweep.runs] == [
        (5, "short"),
        (5, "detailed"),
        (7, "short"),
        (7, "detailed"),
    ]
    assert {body["max_tokens"] for body in asked} == {5, 7} and len(asked) == 8
    assert "| max_tokens | prompt | rouge_l |" in sweep.to_markdown()
    assert (tmp_path / "out" / "sweep.html").exists()
    with pytest.raises(OptionError, match="unknown option 'max_token'"):
        api.sweep_benchmark(
            "vg-regions", {"max_token": [5]}, folder=str(folder), captioner="openai"
        )


def test_a_run_goes_on_where_it_was_killed(
    tmp_path: Path, fiftyone_database: str
) -> None:
    keywords(tmp_path, {})
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    out = tmp_path / "out"

    def run(url: str, **more: Any) -> BenchmarkReport:
        return api.run_benchmark(
            "lvis-keywords",
            folder=str(tmp_path),
            output=str(out),
            captioner="openai",
            captioner_weights=url,
            captioner_options={"model": "stand-in"},
            progress=False,
            **more,
        )

    with endpoint(lambda body: "a cat") as (url, asked):
        whole = run(url)
        assert len(asked) == 3
        path = out / "predictions.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        failed = b'{"id": "1", "pred": "", "error": "no memory"}\n'
        path.write_bytes(lines[0] + failed + lines[2][:9])
        again = run(url)
        assert len(asked) == 5  # the failed one and the one that was cut off
        assert again.overall == whole.overall and again.ok
        assert "doubled" not in again.counts
        with pytest.raises(BenchmarkError, match="made with another prompt"):
            run(url, prompt="short")
        run(url, prompt="short", overwrite=True)
        assert len(asked) == 8


def test_bert_score(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "kite", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=32)
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(tmp_path)
    pairs = [("a red kite", "a red kite"), ("a dog", "a red kite")]
    same, other = bert_score(pairs, str(tmp_path))
    assert same == pytest.approx(1, abs=1e-5) and other < same
