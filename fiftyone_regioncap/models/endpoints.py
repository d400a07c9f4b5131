"""OpenAI-compatible endpoints, asked through OpenAI's own client.

The client retries what may pass (time-outs, broken connections, 408, 409, 429 and 5xx,
as long as ``Retry-After`` says). What is added here: keys and passwords that never
leave for another host nor show in a message, parameters that a model refuses, and the
many forms of an answer.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import math
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from fiftyone_regioncap.core.errors import BackendError, FatalError

OPENAI_URL = "https://api.openai.com/v1"

_LOGGER = logging.getLogger(__name__)

_REFUSABLE = (
    "max_tokens",
    "temperature",
    "top_p",
    "logprobs",
    "frequency_penalty",
    "presence_penalty",
)
"""Parameters that some models refuse and that are then left out."""

_RENAMED = {"max_tokens": "max_completion_tokens"}
"""Replacements of refused parameters."""

_REFUSAL = re.compile(
    r"unsupported|not support|unrecognized|unknown (param|arg)|unexpected (param|key)|"
    r"not permitted|not allowed|deprecated|extra_forbidden",
    re.IGNORECASE,
)

_FATAL = {401, 402, 403, 404}
"""Statuses that further requests will get too: key, quota, model, address."""

_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Completion:
    """The answer of a chat model.

    Attributes:
        text: Text of the answer without its reasoning; may be empty.
        finish: Reason for its end: ``"stop"``, ``"length"`` where it was cut off,
            ``"content_filter"``, or another one of the endpoint; None when the endpoint
            gives none.
        tokens: Number of tokens written; 0 when the endpoint does not count.
        read: Number of tokens of the request; 0 when the endpoint does not count.
        logprobs: Each token with its log probability; empty where they were not asked
            for or belong to reasoning too.
    """

    text: str
    finish: str | None = None
    tokens: int = 0
    read: int = 0
    logprobs: tuple[tuple[str, float], ...] = ()


class Endpoint:
    """Asks an endpoint for chat completions; may be used from several threads.

    Args:
        url: Address such as ``http://localhost:8000/v1``.
        api_key: Key of this endpoint; None for ``$OPENAI_API_KEY``, which is only sent
            to the host of ``$OPENAI_BASE_URL``, else to OpenAI. Never stored or shown.
        timeout: Seconds to wait for a connection, and for the next byte of an answer.
        retries: Number of times that a request is sent again after a transient error,
            each time after a longer pause.
        insecure: Whether the key may go to another machine unencrypted.

    Attributes:
        url: The address, without a password.

    Raises:
        BackendError: When the address or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        insecure: bool = False,
    ) -> None:
        # Kept out of the functions above: the package takes a second to import.
        import openai

        parts = _split(url)
        self.url = without_password(url).rstrip("/")
        if not timeout > 0 or retries < 0:
            raise BackendError("timeout must be above 0, retries 0 or more")
        self._timeout = timeout
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        local = is_loopback(parts.hostname or "")
        headers = _authorization(parts, api_key)
        self._secrets = _secrets(parts, headers)
        # Without a key of this endpoint, none goes out; nor what the environment says
        # of an account with OpenAI.
        names = ("Authorization", "OpenAI-Organization", "OpenAI-Project")
        omitted = dict.fromkeys(names, openai.Omit())
        self._request_options: Any = {"headers": {**omitted, **headers}}
        if headers and parts.scheme == "http" and not (local or insecure):
            raise BackendError(
                f"the key would go to {parts.hostname} unencrypted; use https, a "
                "tunnel to localhost, or insecure=true"
            )
        try:
            self._client = openai.OpenAI(
                base_url=self.url,
                api_key="none",  # see the headers of each request
                timeout=timeout,
                max_retries=retries,
                # This machine is never reached through a proxy.
                http_client=openai.DefaultHttpxClient(trust_env=not local),
            )
        # A proxy in the environment needs a package, or is no address.
        except (ImportError, ValueError) as error:
            raise BackendError(
                f"{self.url} cannot be reached through the proxy that the environment "
                f"names ({error}); unset ALL_PROXY and HTTPS_PROXY, or install what it "
                "needs"
            ) from error

    def first_model(self) -> str:
        """Returns the first of the models that the endpoint lists.

        Raises:
            BackendError: When it lists none.
        """
        answer = self._request(None)
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise BackendError(f"{self.url} lists no model; name one") from error

    def chat(self, body: Mapping[str, Any]) -> Completion:
        """Asks for the completion of a chat.

        Parameters that the model refuses are left out or renamed, from then on in all
        requests.

        Args:
            body: Body of the request, with ``max_tokens`` and ``temperature`` under
                these names.

        Raises:
            FatalError: When every further request will fail too.
            BackendError: When there is no answer, or a refusal.
        """
        answer = self._request(body)
        try:
            return _completion(answer)
        except BackendError as error:
            raise type(error)(self._clean(f"{self.url}: {error}")) from None

    def _request(self, body: Mapping[str, Any] | None) -> Any:
        """Sends a request; without a body, asks for the list of models."""
        import openai

        while True:
            sent = None if body is None else self._accepted(body)
            try:
                if sent is None:
                    answer = self._client.get(
                        "/models", cast_to=object, options=self._request_options
                    )
                    return _json(answer)
                answer = self._client.post(
                    "/chat/completions",
                    cast_to=object,
                    body=sent,
                    options=self._request_options,
                )
                return _json(answer)
            except openai.APIStatusError as error:
                if sent is None or not self._learn(error, sent):
                    raise self._failure(error) from None
            except (openai.APIError, ValueError) as error:
                # Without its cause, which may repeat headers.
                raise self._failure(error) from None

    def _accepted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a body without the parameters that were refused."""
        with self._lock:
            refused = set(self._refused)
        sent = {key: value for key, value in body.items() if key not in refused}
        for old, new in _RENAMED.items():
            if old in refused and old in body and new not in refused:
                sent[new] = body[old]
        return sent

    def _learn(self, error: Any, sent: Mapping[str, Any]) -> bool:
        """Notes parameters that were refused; says whether there were any."""
        if error.status_code not in (400, 422):
            return False
        content = error.body if isinstance(error.body, Mapping) else {}
        text = f"{content.get('code')} {content.get('message')} {error.message}"
        if not _REFUSAL.search(text):
            return False
        names = [name for name in (*_REFUSABLE, *_RENAMED.values()) if name in sent]
        if content.get("param") in names:
            names = [content["param"]]
        else:
            names = [name for name in names if re.search(rf"\b{name}\b", text)]
        with self._lock:
            for name in set(names) - self._refused:
                _LOGGER.warning("%s refuses %s; left out from now on", self.url, name)
            self._refused.update(names)
        return bool(names)

    def _failure(self, error: Any) -> BackendError:
        """Returns the error that says why there is no answer, and what to do."""
        import openai

        kind: type[BackendError] = BackendError
        if isinstance(error, openai.APITimeoutError):
            reason = f"no answer within {self._timeout:g} s"
        elif isinstance(error, openai.APIConnectionError):
            reason = f"no connection ({error.__cause__})"
        elif isinstance(error, openai.APIStatusError):
            reason = f"status {error.status_code}: {_reason(error)}"
            if error.status_code in _FATAL or error.code == "insufficient_quota":
                kind = FatalError
            if error.status_code == 401 and not self._secrets:
                reason += " (no key was sent; $OPENAI_API_KEY only goes to the host of "
                reason += "$OPENAI_BASE_URL, else to OpenAI)"
        else:
            return BackendError(
                f"the answer of {self.url} is no JSON; see that it is OpenAI-compatible"
            )
        return kind(
            f"{self.url} gave no answer: {self._clean(reason)}; see that it runs and "
            "that model, key and limits fit"
        )

    def _clean(self, text: str) -> str:
        """Returns a text without secrets and line breaks, cut to a readable length."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:400]


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def without_password(url: str) -> str:
    """Returns an address without user name and password; other text as it is."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", url)


def _split(url: str) -> SplitResult:
    problem = BackendError(
        f"{without_password(url)!r} is no endpoint: give http(s)://host:port/v1"
    )
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError as error:
        raise problem from error
    raise problem


def _authorization(parts: SplitResult, api_key: str | None) -> dict[str, str]:
    """Returns the header that lets requests in: a key, or a user and password."""
    if api_key is None and parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    key = (api_key or "").strip()
    if not key:
        home = urlsplit(os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)
        if (home.hostname, home.port) == (parts.hostname, parts.port):
            key = (os.environ.get("OPENAI_API_KEY") or "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise BackendError(
            "the endpoint's key has spaces or signs that no key has; copy it again"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _secrets(parts: SplitResult, headers: Mapping[str, str]) -> list[str]:
    """Returns the secrets to hide, as they are sent and as they were given."""
    values = [value.split(" ", 1)[1] for value in headers.values()]
    if parts.password:
        values += [parts.password, unquote(parts.password)]
    return values


def _json(answer: Any) -> Any:
    """Returns JSON that came under another content type, parsed."""
    return json.loads(answer) if isinstance(answer, str) else answer


def _reason(error: Any) -> str:
    """Returns the message of an endpoint's error."""
    body = error.body
    if isinstance(body, Mapping):
        body = body.get("error", body)
    if isinstance(body, Mapping):
        body = body.get("message", body)
    return str(body or error.response.text or "nothing said")


def _completion(answer: Any) -> Completion:
    """Reads an answer in any of its forms."""
    if isinstance(answer, Mapping) and answer.get("error"):
        error = answer["error"]
        code = error.get("code") if isinstance(error, Mapping) else None
        text = error.get("message", error) if isinstance(error, Mapping) else error
        raise (FatalError if code in _FATAL else BackendError)(
            f"it answered with an error: {text}; see that it is OpenAI-compatible and "
            "that model, key and limits fit"
        )
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content = message["content"]
        if isinstance(content, list):
            refusals = [part["refusal"] for part in content if part.get("refusal")]
            said = "".join(
                part["text"]
                for part in content
                if part.get("type", "text") in ("text", "output_text")
            )
        else:
            refusals, said = [], content or ""
        if message.get("refusal"):
            refusals.append(message["refusal"])
        finish = choice.get("finish_reason")
        usage = answer.get("usage") or {}
        tokens, read = usage.get("completion_tokens"), usage.get("prompt_tokens")
        logprobs = [
            (str(token.get("token", "")), min(float(token["logprob"]), 0.0))
            for token in (choice.get("logprobs") or {}).get("content") or []
            if token.get("logprob") is not None
        ]
        text = without_thinking(said)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise BackendError(
            "the answer has no choices[0].message.content; see that the endpoint is "
            "OpenAI-compatible"
        ) from error
    if refusals and not text:
        raise BackendError(f"the model refused: {refusals[0]}")
    if not all(math.isfinite(value) for _, value in logprobs) or text != said.strip():
        logprobs = []
    return Completion(
        text=text,
        finish=None if finish is None else str(finish),
        tokens=tokens if isinstance(tokens, int) else 0,
        read=read if isinstance(read, int) else 0,
        logprobs=tuple(logprobs),
    )


def without_thinking(text: str) -> str:
    """Returns what a reasoning model says after ``<think>...</think>``.

    An opening tag may be missing, as some templates put it into the prompt; without a
    closing one the model was cut off before it said anything.
    """
    text = _THINKING.sub("", text)
    text = re.split(r"</think(?:ing)?>", text, flags=re.IGNORECASE)[-1]
    return re.split(r"<think(?:ing)?>", text, flags=re.IGNORECASE)[0].strip()
