from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.core.errors import BackendError, RegionCapError
from fiftyone_regioncap.evaluation import captions
from fiftyone_regioncap.evaluation.captions import score_captions, tokenize

pytest.importorskip("pycocoevalcap", reason="the extra `metrics` is not installed")

with_java = pytest.mark.skipif(captions.java() is None, reason="Java is not installed")

CANDIDATES = {
    "a": "A red car is turning left at the crossing.",
    "b": "Two dogs run over the green grass",
    "c": "a man wearing a blue jacket, standing still",
    "d": "A man with\nan umbrella 🚗 | naïve ||| café",
    "e": "",
}
REFERENCES = {
    "a": ["A red car turns left.", "The red vehicle is turning to the left side"],
    "b": ["Two brown dogs are running on grass."],
    "c": ["A person in a blue coat who doesn't move"],
    "d": ["A woman walks with an umbrella."],
    "e": ["A cat."],
}


class Letters:
    """Embeds a text as how often each letter is in it."""

    name, dimension = "letters", 26

    def embed(self, texts):
        counts = [
            [t.lower().count(chr(97 + i)) + 1e-6 for i in range(26)] for t in texts
        ]
        vectors = np.array(counts, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@with_java
def test_metrics_are_those_of_pycocoevalcap():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    keys = ["a", "b", "c"]  # that need no care with separators or empty lines
    ours = score_captions(
        {k: CANDIDATES[k] for k in keys},
        REFERENCES,
        ("bleu", "meteor", "rouge_l", "cider"),
    )
    tokenizer = PTBTokenizer()
    res = tokenizer.tokenize({k: [{"caption": CANDIDATES[k]}] for k in keys})
    gts = tokenizer.tokenize({k: [{"caption": t} for t in REFERENCES[k]] for k in keys})
    bleu, bleus = Bleu(4).compute_score(gts, res, verbose=0)
    theirs = {f"bleu_{n}": (bleu[n - 1], bleus[n - 1]) for n in range(1, 5)}
    meteor = captions._scorer("meteor")  # pycocoevalcap's, started once
    for name, scorer in (("meteor", meteor), ("rouge_l", Rouge()), ("cider", Cider())):
        theirs[name] = scorer.compute_score(gts, res)
    assert set(theirs) == set(ours.overall)
    for name, (total, scores) in theirs.items():
        assert ours.overall[name] == pytest.approx(total, abs=1e-6)
        assert list(ours.each[name].values()) == pytest.approx(list(scores), abs=1e-6)
    assert ours.notes == ()


@with_java
def test_no_text_moves_the_others_scores():
    """Separators, line breaks and empty captions are data."""
    alone = score_captions(
        {"c": CANDIDATES["c"]}, REFERENCES, ("bleu", "meteor", "rouge_l")
    )
    mixed = {k: CANDIDATES[k] for k in ("d", "e", "c")}
    together = score_captions(mixed, REFERENCES, ("bleu", "meteor", "rouge_l"))
    for name, scores in together.each.items():
        assert scores["c"] == pytest.approx(alone.each[name]["c"], abs=1e-6), name
        assert scores["e"] == pytest.approx(0, abs=1e-6)


def test_bleu_and_rouge_by_hand_without_java(monkeypatch):
    monkeypatch.setattr(captions, "java", lambda: None)
    scores = score_captions({"x": "the cat sat"}, {"x": ["The cat, sat down!"]})
    # All words are right; one of four is missing: brevity exp(1 - 4/3).
    assert scores.overall["bleu_1"] == pytest.approx(np.exp(-1 / 3), abs=1e-6)
    precision, recall, weight = 1.0, 3 / 4, 1.2**2
    expected = (1 + weight) * precision * recall / (recall + weight * precision)
    assert scores.overall["rouge_l"] == pytest.approx(expected)
    assert "meteor" not in scores.overall
    notes = " ".join(scores.notes)
    assert "need Java" in notes and "tokenized without Java" in notes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's Ball, isn't it?", "a dog's ball isn't it"),
        ("'quoted' -- text...", "quoted text"),
        ("  two\n lines\u2028three ", "two lines three"),
        ("", ""),
    ],
)
def test_tokens_without_java(monkeypatch, text, words):
    monkeypatch.setattr(captions, "java", lambda: None)
    assert tokenize({"x": [text]}) == {"x": [words]}


def test_nothing_but_empty_captions_score_nothing(monkeypatch):
    monkeypatch.setattr(captions, "java", lambda: None)
    scores = score_captions({"x": "", "y": " ."}, {"x": ["a cat"], "y": ["a dog"]})
    assert scores.overall and set(scores.overall.values()) == {0.0}


def test_similarity_takes_the_nearest_reference():
    scores = score_captions(
        {"x": "abc", "y": ""},
        {"x": ["zzz", "cab"], "y": ["abc"]},
        ("similarity",),
        embedder=Letters(),
    )
    assert scores.each["similarity"] == pytest.approx({"x": 1.0, "y": 0.0})
    assert scores.overall["similarity"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("candidates", "references", "metrics", "message"),
    [
        ({"x": "a"}, {"x": ["a"]}, ("blue",), "no metric blue; there are: bleu"),
        ({}, {}, ("bleu",), "no captions"),
        ({"x": "a"}, {"x": []}, ("bleu",), "no reference, the first is x"),
    ],
)
def test_wrong_input_is_refused(candidates, references, metrics, message):
    with pytest.raises(RegionCapError, match=message):
        score_captions(candidates, references, metrics)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(captions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install pycocoevalcap"):
        score_captions({"x": "a"}, {"x": ["a"]}, ("bleu",))
