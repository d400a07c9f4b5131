"""An OpenAI-compatible endpoint, asked with patience."""

from __future__ import annotations

import os
import random
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from fiftyone_regioncap.core.errors import BackendError

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses that may pass. DAM's own server says 500 also to bad requests; those are
asked again in vain, but nothing is lost."""


class Endpoint:
    """Sends requests; may be used from several threads.

    Args:
        url: such as ``http://gpu:8000/v1``.
        api_key: None for ``$OPENAI_API_KEY``; never stored, logged or shown.
        timeout: seconds to connect, and without a byte of the answer.
        retries: how often a request is sent again after time-outs, broken connections
            and statuses that may pass, each time after a longer pause.
        connections: at once.

    Raises:
        BackendError: when the URL is none.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        connections: int = 8,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BackendError(f"{url!r} is no endpoint: give http(s)://host:port/v1")
        if not timeout > 0 or retries < 0 or connections < 1:
            raise BackendError(
                "timeout must be above 0, retries 0 or more, connections 1 or more"
            )
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._retries = retries
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=connections),
        )

    def first_model(self) -> str:
        """The first of the models that the endpoint lists."""
        try:
            return str(self._request("GET", "models")["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise BackendError(f"{self.url} lists no model; name one") from error

    def chat(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Asks for the completion of a chat.

        Args:
            body: of the request.

        Returns:
            the text of the first choice, and the whole answer.

        Raises:
            BackendError: when there is none in the end.
        """
        answer = self._request("POST", "chat/completions", body)
        try:
            said = answer["choices"][0]["message"]["content"]
            if isinstance(said, list):  # as DAM's own server streams
                said = "".join(part["text"] for part in said)
            return said or "", answer
        except (KeyError, IndexError, TypeError) as error:
            raise BackendError(
                f"the answer of {self.url} has no choices[0].message.content; see that "
                "it is OpenAI-compatible"
            ) from error

    def _request(self, method: str, path: str, body: object = None) -> Any:
        failure = ""
        for attempt in range(self._retries + 1):
            pause = min(0.5 * 2**attempt, 30.0) * random.uniform(0.75, 1.25)
            try:
                answer = self._client.request(method, path, json=body)
            except httpx.TimeoutException:
                failure = f"no answer within {self._timeout:g} s"
            except httpx.TransportError as error:
                failure = f"no connection ({error})"
            else:
                if answer.is_success:
                    return _content(answer)
                failure = f"status {answer.status_code}: {_reason(answer)}"
                if answer.status_code not in RETRIED:
                    break
                pause = _asked_for(answer, pause)
            if attempt < self._retries:
                time.sleep(pause)
        raise BackendError(
            f"{self.url} gave no answer: {failure}; see that it runs and that model, "
            "key and limits fit"
        )


def _content(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise BackendError(
            f"the answer of {answer.url} is no JSON; see that it is OpenAI-compatible"
        ) from error


def _reason(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def _asked_for(answer: httpx.Response, pause: float) -> float:
    """The pause that the endpoint asks for, where it does, within reason."""
    try:
        return min(max(float(answer.headers["retry-after"]), pause), 60.0)
    except (KeyError, ValueError):
        return pause
