"""Evaluates DLC-Bench: questions about regions, answered from their descriptions.

The protocol of Describe Anything (arXiv 2504.16072, section 4): a language model reads
each description and answers multiple-choice questions from it; details that are there
give points, details that are not there cost some, and a description of something else
altogether gives none.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import inflect
import numpy as np
from PIL import Image

from fiftyone_regioncap.evaluation.benchmarks import judges, media
from fiftyone_regioncap.evaluation.benchmarks.base import (
    Answer,
    Benchmark,
    File,
    Item,
    Scores,
    Tools,
    published,
)
from fiftyone_regioncap.evaluation.benchmarks.base import Region as Place
from fiftyone_regioncap.evaluation.benchmarks.metrics import Means
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    coco_entries,
    read_object,
)

PROMPT = """\
Answer the multiple-choice question based on the text description of an object in an \
image. You need to follow these rules:
1. Do not output any reasoning. Do not perform correction. Please output exactly one \
answer from the choices for each question. Do not repeat the question.
2. There is no need for exact matching. Please choose the closest option based on the \
description.

The description is:
{caption}

From the description above, please answer the following question with one of the \
choices:
{question}
"""
"""What the judge reads; part of the protocol, so not to be improved."""

LETTERS = "abcde"

SETTINGS: Mapping[str, Any] = {
    "temperature": 0,
    "max_tokens": 300,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
}
"""Parameters of the judge's requests; the published numbers are by
Llama-3.1-8B-Instruct."""

SEEN_SETTINGS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 1000}
"""Parameters of requests to a judge that sees the picture, as GAR's authors have it."""

_INFLECT = inflect.engine()
_NUMBERS = {"bus": "singular", "wine glass": "plural"}
"""Class names that the published prompts take for another number than inflect does."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        text: Text of the question.
        choices: Possible answers, with the score of each.
        kind: Whether it asks for what is there or for what is not.
    """

    text: str
    choices: tuple[tuple[str, float], ...]
    kind: Literal["positive", "negative", "recognition"]

    def prompt(self, caption: str) -> str:
        """Returns the prompt that asks the question about a caption."""
        lines = [self.text]
        lines += [
            f"{chr(ord('A') + number)}. {choice}"
            for number, (choice, _) in enumerate(self.choices)
        ]
        return PROMPT.format(caption=caption, question="\n".join(lines))


@dataclass(frozen=True)
class Region:
    """One object with its questions.

    Attributes:
        key: Its annotation id.
        class_name: Name of its class.
        questions: Questions about it, the recognition question first.
    """

    key: str
    class_name: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class RegionScore:
    """The points of one region.

    Attributes:
        key: Annotation id of the region.
        recognized: Whether the description is of such an object.
        choices: Choice by question, the recognition first; None where the judge's
            answer could not be read.
        positives: Points of the positive questions.
        negatives: Points of the negative questions.
    """

    key: str
    recognized: bool
    choices: tuple[int | None, ...]
    positives: tuple[float, ...]
    negatives: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean over all questions."""
        return fmean([*self.positives, *self.negatives])

    @property
    def positive(self) -> float | None:
        """The mean over positive questions; None without any."""
        return _mean(self.positives)

    @property
    def negative(self) -> float | None:
        """The mean over negative questions; None without any."""
        return _mean(self.negatives)


def _mean(points: Iterable[float | None]) -> float | None:
    known = [point for point in points if point is not None]
    return fmean(known) if known else None


def recognition_question(class_name: str) -> Question:
    """Returns the question whether the description is of such an object at all."""
    if _is_plural(class_name):
        what, kind = f"objects in the description are {class_name}", "objects"
    else:
        what = f"object in the description is {_INFLECT.a(class_name)}"
        kind = "an object"
    text = (
        f"Is it likely that the {what} or {kind} of a similar type? "
        "Again, It does not have to be an exact match."
    )
    return Question(text, (("Yes", 1.0), ("No", 0.0)), "recognition")


def _is_plural(class_name: str) -> bool:
    if class_name in _NUMBERS:
        return _NUMBERS[class_name] == "plural"
    return _INFLECT.singular_noun(class_name) is not False


def parse_answer(answer: str, choices: Sequence[str]) -> int | None:
    """Finds the choice that an answer names, by the protocol's rules, quirks included.

    Args:
        answer: Answer of the judge.
        choices: Choices in the order they were given.

    Returns:
        The number of the choice, which an answer such as ``"e. none"`` may put beyond
        the last; None when no rule applies.

    Raises:
        IndexError: When the answer is empty or a letter beyond the choices.
    """
    said = answer.lower().strip()
    options = [choice.lower().strip() for choice in choices]
    for number, option in enumerate(options):
        letter = chr(ord("a") + number)
        if said in (option, f"{letter}. {option}", letter):
            return number
    contained = [number for number, option in enumerate(options) if option in said]
    if len(contained) == 1:
        return contained[0]
    if len(said) > 1 and said[0] in LETTERS and said[1] == ".":
        return LETTERS.index(said[0])
    if contained:
        return max(contained, key=lambda n: (said.index(options[n]), len(options[n])))
    if not said or (len(said) == 1 and said in LETTERS):
        raise IndexError(f"the answer {answer!r} names no choice of {len(choices)}")
    containing = [number for number, option in enumerate(options) if said in option]
    if containing:
        return max(containing, key=lambda n: (len(options[n]), -n))
    if said[0] in LETTERS and said[1] == "\n":
        return LETTERS.index(said[0])
    return None


def score_region(region: Region, answers: Sequence[str]) -> RegionScore:
    """Scores one description.

    An answer that cannot be read gives no points; where it is the recognition's, the
    object counts as not recognized.

    Args:
        region: The region with its questions.
        answers: Answers of the judge, one a question.
    """
    chosen: list[int | None] = []
    for question, answer in zip(region.questions, answers, strict=True):
        try:
            number = parse_answer(answer, [text for text, _ in question.choices])
        except IndexError:
            number = None
        readable = number is not None and number < len(question.choices)
        chosen.append(number if readable else None)
    recognized = chosen[0] == 0
    points: dict[str, list[float]] = {"positive": [], "negative": []}
    for question, number in zip(region.questions[1:], chosen[1:], strict=True):
        value = 0.0 if number is None else question.choices[number][1]
        points[question.kind].append(value if recognized else min(0.0, value))
    return RegionScore(
        region.key,
        recognized,
        tuple(chosen),
        tuple(points["positive"]),
        tuple(points["negative"]),
    )


def region_of(
    key: str, class_name: str, questions: Sequence[Mapping[str, Any]]
) -> Region:
    """Makes a region of the benchmark's own form of questions."""
    try:
        asked = [
            Question(
                str(question["question"]),
                tuple((str(text), float(score)) for text, score in question["choices"]),
                question["type"],
            )
            for question in questions
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f"region {key}: a question needs question, type and choices of [text, "
            f"score] ({error!r})"
        ) from error
    if any(q.kind not in ("positive", "negative") or not q.choices for q in asked):
        raise BenchmarkError(f"region {key}: questions are positive or negative")
    return Region(key, class_name, (recognition_question(class_name), *asked))


def load(folder: Path) -> Iterator[Item]:
    """Reads the regions with their questions; masks where the annotations are there."""
    names = read_object(folder / "class_names.json")
    annotations = folder / "annotations.json"
    places = {}
    if annotations.exists():
        places = {
            str(one["id"]): (one, image) for one, image in coco_entries(annotations)
        }
    for key, asked in read_object(folder / "qa.json").items():
        if key not in names:
            raise BenchmarkError(f"region {key} has no class name")
        if not isinstance(asked, list):
            raise BenchmarkError(f"region {key} has no list of questions")
        region = region_of(key, str(names[key]), asked)
        annotation, image = places.get(key, ({}, {}))
        mask = annotation.get("segmentation")
        yield Item(
            key,
            image.get("file_name", ""),
            {} if mask is None else {0: Place(mask)},
            values={"region": region},
        )


def score(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Averages positive and negative points over regions; then takes their mean."""

    def asked() -> Iterator[tuple[Answer, list[judges.Question]]]:
        for one in answers:
            region, text = one.item.values["region"], one.text
            pictures = _pictures(one.item, tools) if tools.pictures else ()
            settings = SEEN_SETTINGS if tools.pictures else SETTINGS
            prompts = [question.prompt(text) for question in region.questions]
            if tools.pictures:
                prompts = [
                    p.replace("in an image.", "in this image.", 1) for p in prompts
                ]
            yield (
                one,
                [
                    judges.Question(prompt, region.key, None, settings, pictures)
                    for prompt in prompts
                ],
            )

    means, each, unreadable, unrecognized = Means(), {}, 0, 0
    for one, said in tools.need_judge().each(asked()):
        result = score_region(one.item.values["region"], [a or "" for a in said])
        for name in ("positive", "negative"):
            value = getattr(result, name)
            if value is not None:
                means.add(**{name: value})
        unreadable += result.choices.count(None)
        unrecognized += not result.recognized
        each[one.item.id] = result.score
    found = means.result()
    positive, negative = found.get("positive", 0.0), found.get("negative", 0.0)
    overall = {
        "positive": positive,
        "negative": negative,
        "average": (positive + negative) / 2,
    }
    counts = {"not_recognized": unrecognized, "unreadable": unreadable}
    note = ("the judge saw the pictures: compare with rows of such judges alone",)
    return Scores(overall, each, counts, note if tools.pictures else ())


def _pictures(item: Item, tools: Tools) -> tuple[str, ...]:
    """Returns the picture and the mask in black and white, as data URLs."""
    picture = media.open_image(tools.media or tools.folder, item.media)
    mask = item.regions[0].mask(*picture.shape[:2])
    shown = np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    return tuple(map(_data_url, (picture, shown)))


def _data_url(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_COLUMNS = "positive negative average"
_HUB = "huggingface.co/datasets/nvidia/DLC-Bench"

DLC_BENCH = Benchmark(
    name="dlc-bench",
    title="DLC-Bench",
    summary="Describes a region in detail; a judge answers questions from that.",
    unit="image region",
    size="100 regions of 77 images, 892 questions",
    license="CC BY-NC-SA 4.0",
    files=(
        File("qa.json", _HUB),
        File("class_names.json", _HUB),
        File("annotations.json", _HUB, optional=True),
        File("images/*.jpg", f"{_HUB}; pictures of Objects365", optional=True),
    ),
    load=load,
    score=score,
    metric="A judge answers from the text; means over regions of positive and negative "
    "points, and the mean of both.",
    prompts={
        "dam": "Describe the masked region in detail.",
        "dam-video": "Describe the masked region in detail.",
    },
    generation={
        "temperature": 0.2,
        "top_p": 1.0,
        "top_k": 50,
        "max_new_tokens": 512,
        "seed": 123,
    },
    missing="error",
    needs=frozenset({"judge"}),
    published=(
        *published(
            _COLUMNS,
            "DAM (arXiv 2504.16072), Table 5; judge Llama-3.1-8B-Instruct",
            ("GPT-4o", "43.4 79.6 61.5"),
            ("o1", "46.3 78.8 62.5"),
            ("Claude 3.7", "21.8 50.4 36.1"),
            ("Gemini 2.5 Pro", "36.5 75.2 55.8"),
            ("Llama-3.2-V 11B", "30.7 63.8 47.3"),
            ("Qwen2.5-VL 7B", "20.3 62.2 41.2"),
            ("InternVL2.5 8B", "15.9 42.0 28.9"),
            ("ControlCap", "18.3 75.6 47.0"),
            ("VP-SPHINX-13B, crop", "26.3 71.6 49.0"),
            ("Ferret, crop", "14.2 46.8 30.5"),
            ("DAM-3B of the paper", "52.3 82.2 67.3"),
        ),
        *published(
            _COLUMNS,
            "the authors' READMEs; judge Llama-3.1-8B-Instruct",
            ("DAM-3B released", "51.0 83.0 67.0"),
            ("DAM-3B-Video released", "56.8 84.8 70.8"),
            ("GAR-1B", "48.9 87.0 67.9"),
            ("GAR-8B", "50.2 84.6 67.4"),
        ),
        *published(
            _COLUMNS,
            "GAR's README; judge GPT-4o that sees the picture",
            ("GAR-1B, seeing judge", "66.2 88.0 77.1"),
            ("GAR-8B, seeing judge", "68.0 86.0 77.0"),
        ),
        *published(
            _COLUMNS,
            "PixelRefer (arXiv 2510.23603), Table 1; judge gpt-4-0409",
            ("PixelRefer-2B", "46.8 85.4 66.1"),
            ("PixelRefer-7B", "49.6 87.0 68.3"),
        ),
    ),
    traps=(
        "Rows of different judges are not comparable.",
        "The `avg` stored in the authors' caches is another number than the headline.",
    ),
)
