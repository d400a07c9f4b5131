"""HTTP application of the server: two dialects over one model.

``/chat/completions`` answers in the shapes of the authors' server, so that its clients
go on working; ``/v1/chat/completions`` is OpenAI's API, so that theirs do.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio.to_thread
import numpy as np
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fiftyone_regioncap.captioning.dam.generation import WrittenAnswer
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.scheduler import DamJob, Update
from fiftyone_regioncap.captioning.dam.tokenizer import TextStream
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.models.endpoints import is_loopback
from fiftyone_regioncap.models.sampling import Sampling
from fiftyone_regioncap.serving.batcher import Batcher
from fiftyone_regioncap.serving.messages import (
    MODEL_ALIAS,
    ChatRequest,
    RequestError,
    RequestLimits,
    decode,
    parse,
)


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server.

    Attributes:
        model: Name of the model that clients see, besides ``describe_anything_model``.
        video: Whether the checkpoint handles images and videos.
        token: Token that clients must send as ``Authorization: Bearer``; None for no
            authentication, only allowed on loopback.
        sampling: Default sampling settings of requests; those of the authors' server by
            default.
        limits: Limits of requests.
        rows: Number of answers generated at once.
    """

    model: str = "DAM"
    video: bool = False
    token: str | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(0.2, 50, 0.9))
    limits: RequestLimits = field(default_factory=RequestLimits)
    rows: int = 16


def create_app(dam: DAM, settings: ServerSettings) -> Starlette:
    """Creates the server as an ASGI application.

    Args:
        dam: Loaded DAM model; nothing else may use it while the application runs.
        settings: Settings of the server.
    """
    server = _Server(dam, settings)
    routes = [
        Route("/chat/completions", server.reference_chat, methods=["POST"]),
        Route("/v1/chat/completions", server.openai_chat, methods=["POST"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{name:path}", server.model, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
    ]
    middleware = []
    if settings.token is None:
        middleware.append(Middleware(_LoopbackOnly))
    return Starlette(routes=routes, middleware=middleware, lifespan=server.lifespan)


class _Server:
    def __init__(self, dam: DAM, settings: ServerSettings) -> None:
        self._dam = dam
        self._settings = settings
        self._models = frozenset({settings.model, MODEL_ALIAS})
        self._started = int(time.time())
        self._batcher: Batcher | None = None
        self._decoding = _Budget(settings.limits.decoded_pixels)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._batcher = Batcher(self._dam, self._settings.rows)
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(self._batcher.close)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """Lists the names that the server answers to."""
        if not self._allowed(request):
            return _openai_error(RequestError("wrong or no token", 401))
        listed = [self._model(name) for name in sorted(self._models)]
        return JSONResponse({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """Describes one of the models that the server answers to."""
        name = request.path_params["name"]
        if not self._allowed(request):
            return _openai_error(RequestError("wrong or no token", 401))
        if name not in self._models:
            message = f"there is no model {name[:100]}"
            return _openai_error(RequestError(message, 404, "model"))
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "fiftyone-regioncap",
        }

    # -- the two dialects -------------------------------------------------------------

    async def reference_chat(self, request: Request) -> Response:
        """Answers as the authors' server: errors have status 500, deltas are lists."""
        if not self._allowed(request):
            return JSONResponse({"error": "wrong or no token"}, 401)
        chat = None
        try:
            chat = await self._chat(request)
            job = await self._job(chat)
        except RequestError as error:
            if error.detail is not None:
                return JSONResponse({"detail": error.detail}, 422)
            if chat is not None and chat.stream:
                return _events(_only({"error": str(error)}))
            status = error.status if error.status in _OWN_STATUSES else 500
            return JSONResponse({"error": str(error)}, status)
        assert self._batcher is not None
        updates = self._batcher.updates(job)
        if chat.stream:
            return _events(self._reference_stream(chat, updates))
        try:
            answer = await _answer(request, updates)
        except RequestError as error:
            return JSONResponse({"error": str(error)}, 500)
        answer = self._cut(chat, answer)
        message = {"role": "assistant", "content": self._text(chat, answer)}
        return JSONResponse(
            {
                "id": secrets.token_hex(16),
                "object": "chat.completion",
                "created": time.time(),
                "model": chat.model,
                "choices": [{"message": message}],
            }
        )

    async def _reference_stream(
        self, chat: ChatRequest, updates: AsyncGenerator[Update, None]
    ) -> AsyncIterator[str]:
        name = secrets.token_hex(16)
        try:
            async for piece in self._pieces(chat, updates):
                content = [{"type": "text", "text": piece}]
                yield _event(
                    {
                        "id": name,
                        "object": "chat.completion.chunk",
                        "created": int(time.time()),
                        "model": chat.model,
                        "choices": [
                            {"delta": {"content": content}, "finish_reason": None}
                        ],
                    }
                )
        except RequestError as error:
            yield _event({"error": str(error)})
            return
        yield _event({"choices": [{"finish_reason": "stop"}]})
        yield _DONE

    async def openai_chat(self, request: Request) -> Response:
        try:
            if not self._allowed(request):
                raise RequestError("wrong or no token", 401)
            chat = await self._chat(request, system=True)
            job = await self._job(chat)
            assert self._batcher is not None
            updates = self._batcher.updates(job)
            if chat.stream:
                return _events(self._openai_stream(chat, job, updates))
            answer = self._cut(chat, await _answer(request, updates))
        except RequestError as error:
            return _openai_error(error)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": self._text(chat, answer)},
            "logprobs": self._logprobs(answer) if chat.logprobs else None,
            "finish_reason": "stop" if answer.ended else "length",
        }
        return JSONResponse(
            {
                "id": f"chatcmpl-{secrets.token_hex(16)}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": chat.model,
                "choices": [choice],
                "usage": self._usage(job, len(answer.ids)),
            }
        )

    async def _openai_stream(
        self, chat: ChatRequest, job: DamJob, updates: AsyncGenerator[Update, None]
    ) -> AsyncIterator[str]:
        head = {
            "id": f"chatcmpl-{secrets.token_hex(16)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": chat.model,
        }

        def chunk(delta: dict[str, str], finished: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finished}
            return _event({**head, "choices": [choice]})

        tally = _Tally()
        yield chunk({"role": "assistant", "content": ""})
        try:
            async for piece in self._pieces(chat, tally.counting(updates)):
                if piece:
                    yield chunk({"content": piece})
        except RequestError as error:
            yield _event({"error": _error_body(error)})
            return
        yield chunk({}, "stop" if tally.ended else "length")
        if chat.usage:
            usage = self._usage(job, tally.tokens)
            yield _event({**head, "choices": [], "usage": usage})
        yield _DONE

    # -- what both share --------------------------------------------------------------

    def _allowed(self, request: Request) -> bool:
        """Returns whether a request carries the token, with or without "Bearer"."""
        if self._settings.token is None:
            return True
        sent = request.headers.get("authorization", "").strip()
        scheme, _, rest = sent.partition(" ")
        if scheme.lower() == "bearer":
            sent = rest.strip()
        return hmac.compare_digest(sent.encode(), self._settings.token.encode())

    async def _chat(self, request: Request, *, system: bool = False) -> ChatRequest:
        body = await self._body(request)
        try:
            content = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the request is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise RequestError("the request is not a JSON object")
        # What a web page may send without asking is none of these types.
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise RequestError("send the request as application/json", 415)
        return await anyio.to_thread.run_sync(
            partial(
                parse,
                content,
                self._models,
                self._settings.sampling,
                self._settings.limits,
                system=system,
            )
        )

    async def _body(self, request: Request) -> bytes:
        """Reads a request, as long as it is neither too large nor too slow."""
        limits = self._settings.limits
        too_big = RequestError(f"the request is larger than {limits.body_bytes} bytes")
        too_big.status = 413
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limits.body_bytes:
            raise too_big
        body = bytearray()
        blocks = aiter(request.stream())
        try:
            with anyio.fail_after(limits.body_seconds):
                while True:
                    with anyio.fail_after(limits.block_seconds):
                        body += await anext(blocks)
                    if len(body) > limits.body_bytes:
                        raise too_big
        except StopAsyncIteration:
            return bytes(body)
        except TimeoutError as error:
            raise RequestError("the request did not arrive in time", 408) from error
        except ClientDisconnect as error:
            raise RequestError("the client is gone", 400) from error

    async def _job(self, chat: ChatRequest) -> DamJob:
        query = chat.query(self._settings.video)
        try:
            async with self._decoding.taken(chat.pixels):
                views = await anyio.to_thread.run_sync(self._views, chat.images)
        except PromptError as error:
            raise RequestError(str(error)) from error
        assert self._batcher is not None
        return DamJob(
            self._batcher.key(),
            views,
            query,
            samplings=(chat.sampling,),
            max_new_tokens=chat.max_new_tokens,
        )

    def _views(self, images: list[Image.Image]) -> torch.Tensor:
        made = []
        # One by one: decoded images are a hundred times as large as their views.
        while images:
            image = decode(images.pop(0))
            mask = np.asarray(image.getchannel("A"))
            made.append(self._dam.processor.views(image.convert("RGB"), mask)[0])
        return torch.from_numpy(np.stack(made))

    async def _pieces(
        self, chat: ChatRequest, updates: AsyncGenerator[Update, None]
    ) -> AsyncIterator[str]:
        """Yields an answer piece by piece, up to where the client wants it to stop."""
        stream = TextStream(self._dam.tokenizer)
        # What may turn out to be the beginning of a stop is held back.
        kept = max((len(stop) - 1 for stop in chat.stop), default=0)
        held = ""
        async with aclosing(updates):
            async for update in updates:
                _raise_error(update)
                if update.token is None:
                    continue
                held += stream.put(update.token)
                end = chat.end(held)
                if end is not None:
                    yield held[:end]
                    return
                sure = max(len(held) - kept, 0)
                yield held[:sure]
                held = held[sure:]
        held += stream.end()
        yield held[: chat.end(held)]

    def _cut(self, chat: ChatRequest, answer: WrittenAnswer) -> WrittenAnswer:
        """Returns an answer up to the token that completes a text to stop at."""
        decode_ids = self._dam.tokenizer.answer
        if chat.end(decode_ids(answer.ids)) is None:
            return answer
        count = next(
            count
            for count in range(1, len(answer.ids) + 1)
            if chat.end(decode_ids(answer.ids[:count])) is not None
        )
        return WrittenAnswer(
            answer.ids[:count], answer.probabilities[:count], ended=True
        )

    def _text(self, chat: ChatRequest, answer: WrittenAnswer) -> str:
        text = self._dam.tokenizer.answer(answer.ids)
        return text[: chat.end(text)].strip()

    def _usage(self, job: DamJob, completion: int) -> dict[str, int]:
        ids = self._dam.prompt_ids(job.query)
        images = len(job.views) * (self._dam.config.tokens_per_image - 1)
        prompt = len(ids) + images
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _logprobs(self, answer: WrittenAnswer) -> dict[str, list[dict[str, Any]]]:
        pieces = self._dam.tokenizer.pieces(answer.ids)
        return {
            "content": [
                {
                    "token": piece,
                    "logprob": math.log(max(probability, 1e-30)),
                    "bytes": None,
                    "top_logprobs": [],
                }
                for piece, probability in zip(pieces, answer.probabilities, strict=True)
            ]
        }


class _LoopbackOnly:
    """Refuses requests by other names than those that only this machine has.

    A web page must not reach the server through a name that resolves to here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        app = self._app
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "").lower()
            if not is_loopback(re.sub(r":\d*$", "", host)):
                app = PlainTextResponse("Invalid host header", status_code=400)
        await app(scope, receive, send)


class _Budget:
    """Lets work begin as long as all running work fits a total.

    Args:
        total: Total amount of all running work; work that needs more runs alone.
    """

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Waits until an amount is free, and takes it meanwhile."""
        amount = min(amount, self._total)
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            self._free += amount
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    self._changed.notify_all()


class _Tally:
    """Counts the tokens of an answer on their way.

    An answer that ends before its last update was stopped, as the client wanted.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.ended = True

    async def counting(
        self, updates: AsyncGenerator[Update, None]
    ) -> AsyncGenerator[Update, None]:
        """Passes updates on and counts their tokens."""
        async with aclosing(updates):
            async for update in updates:
                if update.answers is not None:
                    self.tokens = len(update.answers[0].ids)
                    self.ended = update.answers[0].ended
                elif update.token is not None:
                    self.tokens += 1
                yield update


_DONE = "data: [DONE]\n\n"

_OWN_STATUSES = (408, 413, 415)
"""Statuses that the authors' dialect has too; everything else is its 500."""


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


async def _answer(
    request: Request, updates: AsyncGenerator[Update, None]
) -> WrittenAnswer:
    """Waits for a whole answer, as long as the client does; else it is canceled."""
    answer = asyncio.ensure_future(_last(updates))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise RequestError("the client is gone")
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _raise_error(update: Update) -> None:
    if update.error is not None:
        raise RequestError(update.error, 400 if update.rejected else 500)


async def _last(updates: AsyncGenerator[Update, None]) -> WrittenAnswer:
    async with aclosing(updates):
        async for update in updates:
            _raise_error(update)
            if update.answers is not None:
                return update.answers[0]
    raise RequestError("the server is shutting down", 503)


async def _only(content: dict[str, Any]) -> AsyncIterator[str]:
    yield _event(content)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _events(lines: AsyncIterator[str]) -> Response:
    return StreamingResponse(lines, media_type="text/event-stream")


def _error_body(error: RequestError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"message": str(error), "type": kind, "param": error.param, "code": None}


def _openai_error(error: RequestError) -> Response:
    return JSONResponse({"error": _error_body(error)}, error.status)
