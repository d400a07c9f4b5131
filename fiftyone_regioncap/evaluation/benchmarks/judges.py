"""Language models that judge answers, whose own answers are kept and counted.

An answer is kept under a hash of all that was asked (model, messages, settings and the
number of the try), in a file of JSON lines to which each is added as soon as it comes:
a run that was killed asks nothing twice, and a changed caption is never scored by the
answer to another one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fiftyone_regioncap.captioning.feeding import Feeder
from fiftyone_regioncap.core.errors import BackendError, FatalError
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    is_lines,
    read_json,
)
from fiftyone_regioncap.models.endpoints import Completion, Endpoint

T = TypeVar("T")

FAILURES_IN_A_ROW = 3
"""Questions without an answer after which a judge is taken to be gone."""

_ANSWER_NAMES = ("response", "pred_answer", "answer", "output", "gpt", "pred")
"""Names that stored judgments have for what the judge said."""


@dataclass(frozen=True)
class Question:
    """What a judge is asked.

    Attributes:
        text: The question itself, without the instruction.
        item: Id of the item that it is about.
        instruction: What the judge shall do; None to leave that to the question.
        settings: Parameters of the request, such as ``temperature``.
        images: Pictures as data URLs.
        about: The prediction and the reference that are compared, by which stored
            answers of others are found.
        readable: Says whether an answer can be read; others are asked for again, up to
            ``tries`` times.
        tries: Number of times that a question is asked at most.
    """

    text: str
    item: str = ""
    instruction: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    about: tuple[str, str] | None = None
    readable: Callable[[str], bool] = bool
    tries: int = 1

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of the request."""
        content: Any = self.text
        if self.images:
            shown = [
                {"type": "image_url", "image_url": {"url": u}} for u in self.images
            ]
            content = [*shown, {"type": "text", "text": self.text}]
        system = [{"role": "system", "content": self.instruction}]
        user = {"role": "user", "content": content}
        return [*(system if self.instruction else []), user]


@dataclass
class Usage:
    """What was asked of a judge.

    Attributes:
        calls: Number of requests that were answered by the model.
        cached: Number of questions answered from the file.
        failed: Number of questions without an answer.
        input_tokens: Number of tokens read.
        output_tokens: Number of tokens written.
    """

    calls: int = 0
    cached: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def cost(self, prices: tuple[float, float]) -> float:
        """Computes the cost.

        Args:
            prices: Price of a million tokens read, and of a million written.
        """
        millions = self.input_tokens / 1e6, self.output_tokens / 1e6
        return millions[0] * prices[0] + millions[1] * prices[1]


class Asker(Protocol):
    """Answers one question."""

    def __call__(self, question: Question) -> Completion:
        """Returns the answer.

        Raises:
            BackendError: If there is none.
        """


class AnswerFile:
    """Answers by the hash of what was asked, in a file of JSON lines.

    Args:
        path: Path of the file; made when the first answer is added. A last line that
            was cut off by a kill is passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        self._lock = threading.Lock()
        if path.exists():
            self._index()

    def _index(self) -> None:
        place = 0
        with self._path.open("rb") as file:
            for line in file:
                with suppress(ValueError, KeyError, TypeError):  # of a cut-off line
                    self._places[json.loads(line)["key"]] = place
                place += len(line)

    def get(self, key: str) -> str | None:
        """Returns an answer; None when it was not asked yet."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            with self._path.open("rb") as file:
                file.seek(place)
                return json.loads(file.readline())["answer"]

    def add(self, key: str, answer: Completion, question: Question, model: str) -> None:
        """Adds an answer, at once."""
        line = {
            "key": key,
            "item": question.item,
            "model": model,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "answer": answer.text,
            "tokens": [answer.read, answer.tokens],
        }
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                end = file.seek(0, 2)
                if end:
                    file.seek(end - 1)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                        end += 1
                file.write(content)
            self._places[key] = end


class Judge:
    """Asks questions, several at once, and keeps the answers.

    Args:
        ask: What answers a question; may be called from several threads.
        model: Name of the model.
        answers: File that answers are kept in; None to keep none.
        workers: Number of questions that are asked at once.

    Attributes:
        model: Name of the model.
        usage: What was asked so far.
    """

    def __init__(
        self,
        ask: Asker,
        model: str = "",
        *,
        answers: AnswerFile | None = None,
        workers: int = 8,
    ) -> None:
        self.model = model
        self.usage = Usage()
        self._ask = ask
        self._answers = answers
        self._workers = workers
        self._lock = threading.Lock()

    def each(
        self, asked: Iterable[tuple[T, Sequence[Question]]]
    ) -> Iterator[tuple[T, list[str | None]]]:
        """Asks the questions of each of many things, a bounded number ahead.

        Args:
            asked: Things with their questions.

        Yields:
            Each thing, in order, with the answers; None where there is none.

        Raises:
            BackendError: If the judge is gone, or refuses every question.
        """
        in_a_row = 0

        def answers(
            entry: tuple[T, Sequence[Question]],
        ) -> tuple[T, list[str | BackendError]]:
            return entry[0], [self._answer(question) for question in entry[1]]

        with Feeder(
            asked, answers, workers=self._workers, ahead=2 * self._workers
        ) as feeder:
            while (ready := feeder.take(wait=True)) is not None:
                thing, found = ready
                for one in found:
                    failed = isinstance(one, BackendError)
                    in_a_row = in_a_row + 1 if failed else 0
                    if isinstance(one, FatalError) or in_a_row >= FAILURES_IN_A_ROW:
                        raise one  # type: ignore[misc]  # it is an error
                yield thing, [None if isinstance(o, BackendError) else o for o in found]
            if feeder.error is not None:
                raise feeder.error

    def _answer(self, question: Question) -> str | BackendError:
        """Returns the first answer that can be read, else the last one."""
        answer: str | BackendError = ""
        for attempt in range(question.tries):
            try:
                answer = self._once(question, attempt)
            except BackendError as error:
                with self._lock:
                    self.usage.failed += 1
                return error
            if question.readable(answer):
                break
        return answer

    def _once(self, question: Question, attempt: int) -> str:
        key = self._key(question, attempt)
        kept = None if self._answers is None else self._answers.get(key)
        if kept is not None:
            with self._lock:
                self.usage.cached += 1
            return kept
        answer = self._ask(question)
        if self._answers is not None:
            self._answers.add(key, answer, question, self.model)
        with self._lock:
            self.usage.calls += 1
            self.usage.input_tokens += answer.read
            self.usage.output_tokens += answer.tokens
        return answer.text

    def _key(self, question: Question, attempt: int) -> str:
        asked = [self.model, question.messages, dict(question.settings), attempt]
        text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def open_judge(
    judge: str,
    model: str | None = None,
    *,
    answers: Path | None = None,
    workers: int = 8,
    timeout: float = 60.0,
) -> Judge:
    """Opens a judge.

    Args:
        judge: URL of an OpenAI-compatible endpoint, or a file of stored answers: ours,
            or as published with a benchmark.
        model: Name of the endpoint's model; None for the first that it lists.
        answers: File that the endpoint's answers are kept in.
        workers: Number of questions that are asked at once.
        timeout: Seconds to wait for an answer.

    Raises:
        BackendError: If the endpoint is not there.
        BenchmarkError: If there is no such file, or it is none of answers.
    """
    if not judge.startswith(("http://", "https://")):
        path = Path(judge)
        if path.is_file() and is_lines(path):
            stored = AnswerFile(path)
            return Judge(_nothing_stored, model or _model_of(path), answers=stored)
        return Judge(StoredAnswers(read_json(path)), "stored", workers=1)
    endpoint = Endpoint(judge, timeout=timeout, retries=3)
    name = model or endpoint.first_model()

    def ask(question: Question) -> Completion:
        body = {"model": name, "messages": question.messages, **question.settings}
        return endpoint.chat(body)

    kept = None if answers is None else AnswerFile(answers)
    return Judge(ask, name, answers=kept, workers=workers)


def _model_of(path: Path) -> str:
    """Returns the model that the answers of a file are by."""
    with path.open("rb") as file:
        try:
            return str(json.loads(file.readline())["model"])
        except (ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"{path} is no file of a judge's answers") from error


def _nothing_stored(question: Question) -> Completion:
    raise FatalError(
        f"item {question.item}: the file of answers has none to this question about "
        "this caption; give the URL of a judge as well"
    )


class StoredAnswers:
    """Answers that were published with a benchmark, or stored by others.

    They are looked for below the item's id: an object of prompts and answers, a list of
    prompts beside one of answers, an object that holds the very prompt beside its
    answer, or the answer itself. In lists of judged captions, they are found by caption
    and reference.

    Args:
        stored: Content of the file.
    """

    def __init__(self, stored: Any) -> None:
        self._stored = stored if isinstance(stored, Mapping) else {}
        self._judged: dict[tuple[str, str], str] = {}
        for entry in stored if isinstance(stored, list) else ():
            about = (
                str(entry.get("pred")),
                str(entry.get("Answer", entry.get("caption"))),
            )
            said = next((entry[n] for n in _ANSWER_NAMES[:-1] if n in entry), None)
            self._judged.setdefault(about, said if isinstance(said, str) else "")

    def __call__(self, question: Question) -> Completion:
        """Returns the stored answer to this very question."""
        own = self._stored.get(question.item)
        found = own if isinstance(own, str) else None
        if found is None:
            found = next(_answers(own, question.text), None)
        if found is None and question.about is not None:
            found = self._judged.get(question.about)
        return _nothing_stored(question) if found is None else Completion(found)


def _answers(stored: Any, prompt: str) -> Iterator[str]:
    """Iterates over the stored answers to a prompt."""
    if isinstance(stored, Mapping):
        if isinstance(stored.get(prompt), str):
            yield stored[prompt]
        for asked in stored.values():
            listed = isinstance(asked, list) and prompt in asked
            if asked == prompt or listed:
                for name in _ANSWER_NAMES:
                    answer = stored.get(name)
                    if listed and isinstance(answer, list):
                        pairs = zip(asked, answer, strict=False)
                        answer = next((said for q, said in pairs if q == prompt), None)
                    if isinstance(answer, str):
                        yield answer
        for value in stored.values():
            yield from _answers(value, prompt)
    elif isinstance(stored, list):
        for value in stored:
            yield from _answers(value, prompt)
