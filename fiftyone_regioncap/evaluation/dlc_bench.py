"""Evaluates DLC-Bench: questions about regions, answered from their descriptions.

The protocol of Describe Anything (arXiv 2504.16072, section 4): a language model reads
each description and answers multiple-choice questions from it; details that are there
give points, details that are not there cost some, and a description of something else
altogether gives none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

import inflect

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.models.endpoints import Endpoint

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
ANSWER_NAMES = ("response", "pred_answer", "answer", "output", "pred")
"""Names that stored judgments have for what the judge said."""


_INFLECT = inflect.engine()
_NUMBERS = {"bus": "singular", "wine glass": "plural"}
"""Class names that the published prompts take for another number than inflect does."""


class DLCBenchError(RegionCapError, ValueError):
    """Files of the benchmark, or a judge's cache, are not what they should be."""


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


@dataclass(frozen=True)
class Report:
    """The result of a run.

    Attributes:
        regions: The score of each region.
    """

    regions: tuple[RegionScore, ...]

    @property
    def unreadable(self) -> int:
        """Number of answers that could not be read; they gave no points."""
        return sum(region.choices.count(None) for region in self.regions)

    @property
    def positive(self) -> float:
        """The mean over regions of their positive scores."""
        return _mean(region.positive for region in self.regions) or 0.0

    @property
    def negative(self) -> float:
        """The mean over those regions that have negative questions."""
        return _mean(region.negative for region in self.regions) or 0.0

    @property
    def average(self) -> float:
        """The benchmark's headline: the mean of both."""
        return (self.positive + self.negative) / 2

    @property
    def unrecognized(self) -> int:
        """Number of regions whose description is of something else."""
        return sum(not region.recognized for region in self.regions)

    def __str__(self) -> str:
        text = (
            f"DLC-Bench over {len(self.regions)} regions (Pos Neg Avg): "
            f"{self.positive:.3f}, {self.negative:.3f}, {self.average:.3f}; "
            f"{self.unrecognized} not recognized"
        )
        if self.unreadable:
            text += f"; {self.unreadable} answers of the judge could not be read"
        return text


Judge: TypeAlias = Callable[["Region", str], str]
"""Answers a prompt about a region; it is called from several threads."""


def endpoint_judge(url: str, model: str | None = None) -> Judge:
    """Returns a language model behind an OpenAI-compatible endpoint.

    The published numbers are by Llama-3.1-8B-Instruct.

    Args:
        url: Base URL of the endpoint, such as ``http://localhost:9000/v1``.
        model: Name of the model; None for the first that the endpoint lists.

    Raises:
        BackendError: When the endpoint is not there.
    """
    endpoint = Endpoint(url, timeout=60.0, retries=3)
    settings = {  # the protocol's
        "model": model or endpoint.first_model(),
        "temperature": 0,
        "max_tokens": 300,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
    }

    def answer(region: Region, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return endpoint.chat({**settings, "messages": messages}).text

    return answer


class CachedJudge:
    """Answers that were stored, ours or those published with the benchmark.

    Ours are an object of prompts and answers by region. The published ones hold, region
    by region, a list of prompts and beside it one of answers; in others, the object
    that holds the very prompt is searched for, and the answer taken that is beside it.

    Args:
        stored: Content of the file.
        fallback: Judge that is asked for what is not stored; its answers are added.
    """

    def __init__(
        self, stored: Mapping[str, Any], fallback: Judge | None = None
    ) -> None:
        self._stored = stored
        self._fallback = fallback
        self.answers: dict[str, dict[str, str]] = {}

    @classmethod
    def read(cls, path: Path, fallback: Judge | None = None) -> CachedJudge:
        """Reads a file; an absent one is empty when there is a fallback."""
        if fallback is not None and not path.exists():
            return cls({}, fallback)
        return cls(_read(path), fallback)

    def save(self, path: Path) -> None:
        """Writes all answers that were given, in our form."""
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(self.answers, indent=1))
        partial.replace(path)

    def __call__(self, region: Region, prompt: str) -> str:
        """Returns the stored answer to this very prompt."""
        answer = next(_answers(self._stored.get(region.key), prompt), None)
        if answer is None:
            if self._fallback is None:
                raise DLCBenchError(
                    f"region {region.key}: the judge's cache has no answer to this "
                    "question about this caption; give the URL of a judge as well"
                )
            answer = self._fallback(region, prompt)
        self.answers.setdefault(region.key, {})[prompt] = answer
        return answer


def _answers(stored: Any, prompt: str) -> Iterator[str]:
    """Iterates over the stored answers to a prompt."""
    if isinstance(stored, Mapping):
        if isinstance(stored.get(prompt), str):
            yield stored[prompt]
        asked = [value for value in stored.values() if value == prompt]
        asked += [v for v in stored.values() if isinstance(v, list) and prompt in v]
        for question, name in product(asked, ANSWER_NAMES):
            answer = stored.get(name)
            if isinstance(question, list) and isinstance(answer, list):
                pairs = zip(question, answer, strict=False)
                answer = next((said for q, said in pairs if q == prompt), None)
            if isinstance(answer, str):
                yield answer
        for value in stored.values():
            yield from _answers(value, prompt)
    elif isinstance(stored, list):
        for value in stored:
            yield from _answers(value, prompt)


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


def evaluate(
    regions: Sequence[Region],
    captions: Mapping[str, str],
    judge: Judge,
    *,
    workers: int = 8,
    default: str | None = None,
) -> Report:
    """Scores captions.

    Args:
        regions: Regions of the benchmark.
        captions: Captions by annotation id.
        judge: Judge that answers the questions.
        workers: Number of questions asked at once.
        default: Caption of regions without one, or with one that begins ``Error:``.

    Raises:
        DLCBenchError: When a region has no caption and there is no default.
        BackendError: When the judge does not answer.
    """
    texts = {}
    for region in regions:
        text = captions.get(region.key, "Error: no caption")
        if text.startswith("Error:"):
            if default is None:
                raise DLCBenchError(
                    f"region {region.key} has no caption ({text[:100]}); caption it, "
                    "or give a default for such regions"
                )
            text = default
        texts[region.key] = text

    def answered(region: Region) -> RegionScore:
        prompts = [q.prompt(texts[region.key]) for q in region.questions]
        return score_region(region, [judge(region, prompt) for prompt in prompts])

    with ThreadPoolExecutor(workers) as pool:
        return Report(tuple(pool.map(answered, regions)))


def read_regions(questions: Path, class_names: Path | None = None) -> list[Region]:
    """Reads the benchmark's questions.

    Args:
        questions: ``qa.json``, questions by annotation id.
        class_names: ``class_names.json``; None for the one beside the questions.

    Raises:
        DLCBenchError: When a file is missing or of another form.
    """
    names = _read(class_names or questions.with_name("class_names.json"))
    regions = []
    for key, asked in _read(questions).items():
        if key not in names:
            raise DLCBenchError(f"region {key} has no class name")
        regions.append(region_of(key, str(names[key]), asked))
    return regions


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
        raise DLCBenchError(
            f"region {key}: a question needs question, type and choices of [text, "
            f"score] ({error!r})"
        ) from error
    if any(q.kind not in ("positive", "negative") or not q.choices for q in asked):
        raise DLCBenchError(f"region {key}: questions are positive or negative")
    return Region(key, class_name, (recognition_question(class_name), *asked))


def run(
    captions: Path,
    questions: Path,
    judge: str,
    *,
    class_names: Path | None = None,
    cache_file: Path | None = None,
    model: str | None = None,
    default: str | None = None,
    workers: int = 8,
) -> Report:
    """Scores a file of captions: what ``regioncap evaluate dlc-bench`` does.

    Args:
        captions: JSON file of captions by annotation id.
        questions: ``qa.json`` of the benchmark.
        judge: URL of an OpenAI-compatible endpoint, or a file of stored answers.
        class_names: ``class_names.json``; None for the one beside the questions.
        cache_file: File of an endpoint's answers, which are looked up there first.
        model: Name of the endpoint's model; None for the first that it lists.
        default: Caption of regions without one.
        workers: Number of questions asked at once.

    Raises:
        DLCBenchError: When a file is not what it should be.
        BackendError: When the judge does not answer.
    """
    regions = read_regions(questions, class_names)
    texts = {str(key): str(text) for key, text in _read(captions).items()}
    if not judge.startswith(("http://", "https://")):
        stored = CachedJudge.read(Path(judge))
        return evaluate(regions, texts, stored, workers=1, default=default)
    endpoint = endpoint_judge(judge, model)
    if cache_file is None:
        return evaluate(regions, texts, endpoint, workers=workers, default=default)
    remembering = CachedJudge.read(cache_file, endpoint)
    try:
        return evaluate(regions, texts, remembering, workers=workers, default=default)
    finally:
        remembering.save(cache_file)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DLCBenchError(f"{path} is not there") from error
    except (OSError, ValueError) as error:
        raise DLCBenchError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DLCBenchError(f"{path} holds no JSON object by region")
    return content
