"""The remote captioner against our own server and endpoints that misbehave."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fiftyone_regioncap.captioning.configuration import OpenAIOptions
from fiftyone_regioncap.captioning.dam.captioner import (
    DamCaptioner,
    DamVideoCaptioner,
)
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.openai import OpenAICaptioner, picture
from fiftyone_regioncap.core.errors import BackendError, FatalError, OptionError
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.sampling import GREEDY
from fiftyone_regioncap.serving import ServerSettings, running
from tests.support.dam import write_checkpoint


def clip(seed: int = 0, frames: int = 1, empty: bool = False) -> RegionClip:
    rng = np.random.default_rng(seed)
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:30, 10 + seed % 9 : 40] = not empty
    images = [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(frames)]
    return RegionClip(images, [mask] * frames)


def remote(url: str | None = None, **options: Any) -> OpenAICaptioner:
    return OpenAICaptioner(url, OpenAIOptions(**options))


@pytest.fixture(scope="module")
def dam(tmp_path_factory: pytest.TempPathFactory) -> DAM:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dam")
    write_checkpoint(folder)
    return DAM.from_pretrained(folder)


@pytest.mark.parametrize("video", [False, True])
def test_a_dam_server_says_what_dam_says(dam: DAM, video: bool) -> None:
    clips = [clip(n, 8 if video and n % 2 else 1) for n in range(6)]
    clips.insert(2, clip(9, empty=True))
    kind = DamVideoCaptioner if video else DamCaptioner
    local = kind(dam, DamOptions(max_new_tokens=12)).caption(clips)
    with running(dam, ServerSettings(video=video, sampling=GREEDY)) as url:
        captioner = remote(
            f"{url}/v1",
            frames=8 if video else 1,
            max_tokens=12,
            confidence=True,
        )
        answers = captioner.caption(clips)
    for ours, theirs in zip(answers, local, strict=True):
        assert (ours.text, ours.tokens) == (theirs.text, theirs.tokens)
        assert (ours.error is None) == (theirs.error is None)
        if ours.confidence is not None:
            assert 0 < ours.min_confidence <= ours.confidence <= 1


def test_the_authors_dialect(dam: DAM) -> None:
    with running(dam, ServerSettings(sampling=GREEDY)) as url:
        (caption,) = remote(url, max_tokens=12).caption([clip()])
    (local,) = DamCaptioner(dam, DamOptions(max_new_tokens=12)).caption([clip()])
    assert caption.text == local.text


class Endpoint:
    """An endpoint that answers as a script says, one entry a request."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.requests: list[dict] = []
        self.headers: list[Message] = []
        self.at_once = self.most = 0
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[str]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with endpoint.lock:
                    endpoint.at_once += 1
                    endpoint.most = max(endpoint.most, endpoint.at_once)
                length = int(self.headers["content-length"])
                endpoint.requests.append(json.loads(self.rfile.read(length)))
                endpoint.headers.append(self.headers)
                script = endpoint.script
                reply = script.pop(0) if len(script) > 1 else script[0]
                with endpoint.lock:
                    endpoint.at_once -= 1
                self.reply(reply)

            def reply(self, reply: Any) -> None:
                if isinstance(reply, float):
                    time.sleep(reply)
                    return
                if callable(reply):
                    reply = reply(endpoint.requests[-1])
                status, body, *headers = reply
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()


def said(text: Any, **message: Any) -> tuple[int, dict]:
    return 200, {"choices": [{"message": {"content": text, **message}}]}


def ended(text: Any, finish: str) -> tuple[int, dict]:
    choice = {"message": {"content": text}, "finish_reason": finish}
    return 200, {"choices": [choice], "usage": {"completion_tokens": None}}


def refuses(*names: str) -> Any:
    """Answers like a model that knows none of these parameters."""

    def answer(request: dict) -> tuple[int, dict]:
        for name in names:
            if name in request:
                message = f"Unsupported parameter: '{name}' is not supported here."
                if name == "max_tokens":
                    message += " Use 'max_completion_tokens' instead."
                error = {"message": message, "code": "unsupported_parameter"}
                return 400, {"error": error | {"param": name}}
        return GOOD

    return answer


def in_the_past() -> str:
    return formatdate(time.time() - 60, usegmt=True)


def in_a_second() -> str:
    return formatdate(time.time() + 2, usegmt=True)


GOOD = said("A red car.")


@pytest.mark.parametrize(
    ("script", "requests"),
    [
        pytest.param([GOOD], 1, id="at once"),
        pytest.param([(500, {"error": "busy"}), GOOD], 2, id="once more"),
        pytest.param(
            [(429, {}, ("retry-after", "0.1")), (503, b"<html>"), GOOD], 3, id="twice"
        ),
        pytest.param([0.8, GOOD], 2, id="after hanging"),
        pytest.param([(529, {"error": "overloaded"}), GOOD], 2, id="529"),
        pytest.param(
            [(429, {}, ("retry-after", in_the_past())), GOOD], 2, id="date in the past"
        ),
        pytest.param([said([{"type": "text", "text": "A red car."}])], 1, id="a list"),
    ],
)
def test_patience(script: list, requests: int) -> None:
    endpoint = Endpoint(*script)
    with endpoint.running() as url:
        captioner = remote(url, timeout=0.5, retries=3)
        (caption,) = captioner.caption([clip()])
    assert (caption.text, caption.label) == ("A red car.", "red car")
    assert len(endpoint.requests) == requests


@pytest.mark.parametrize(
    ("script", "reason", "requests"),
    [
        pytest.param(
            [(401, {"error": {"message": "bad key"}})], "bad key", 1, id="key"
        ),
        pytest.param([(404, {"error": "no model"})], "no model", 1, id="model"),
        pytest.param([(500, {"error": "x"})], "status 500: x", 2, id="always broken"),
        pytest.param([2.0], "no answer within", 2, id="hangs"),
        pytest.param([(200, b"nonsense")], "no JSON", 1, id="no JSON"),
        pytest.param([(200, {"choices": []})], "OpenAI-compatible", 1, id="nothing"),
        pytest.param([said("  ")], "nothing to say", 1, id="silence"),
        pytest.param([(200, b"[]")], "OpenAI-compatible", 1, id="a list"),
        pytest.param([said(None, refusal="I won't.")], "I won't", 1, id="refusal"),
        pytest.param(
            [said([{"type": "refusal", "refusal": "Not that."}])],
            "Not that",
            1,
            id="refusal in a list",
        ),
        pytest.param(
            [said("", reasoning_content="Let me think")],
            "nothing to say",
            1,
            id="reasoning only",
        ),
        pytest.param([said("<think>A car. It")], "nothing to say", 1, id="thinking"),
        pytest.param([ended("<think>It", "length")], "max_tokens", 1, id="cut thought"),
        pytest.param([ended(None, "content_filter")], "filter", 1, id="filtered"),
        pytest.param(
            [(200, {"error": {"message": "no capacity", "code": 502}})],
            "no capacity",
            1,
            id="error with status 200",
        ),
        pytest.param(
            [(400, {"error": {"message": "max_tokens is too large"}})],
            "too large",
            1,
            id="a value that is refused, not its name",
        ),
    ],
)
def test_an_error_of_that_clip(script: list, reason: str, requests: int) -> None:
    endpoint = Endpoint(*script)
    with endpoint.running() as url:
        captioner = remote(url, timeout=0.3, retries=1)
        (caption,) = captioner.caption([clip()])
    assert caption.text == "" and reason in caption.error
    assert len(endpoint.requests) == requests


def test_nobody_there() -> None:
    captioner = remote("http://127.0.0.1:9/v1", retries=0)
    assert "no connection" in captioner.caption([clip()])[0].error


def test_several_at_once_in_order() -> None:
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        captioner = remote(url, concurrency=4, model="vision")
        stream = captioner.caption_stream(clip(n, empty=n % 3 == 0) for n in range(30))
        errors = [caption.error is not None for caption in stream]
    assert errors == [n % 3 == 0 for n in range(30)]
    assert endpoint.most <= 4


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
        remote().caption([clip()])
        remote(api_key="given").caption([clip()])
    keys = [headers["Authorization"] for headers in endpoint.headers]
    assert keys == ["Bearer from-environment", "Bearer given"]


def test_prompts() -> None:
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        captioner = remote(url, model="vision", frames=4)
        captioner.caption([clip(0, 9)], prompt="short")
        captioner.caption([clip(0, 2)], prompt="Which brand?")
    parts = [request["messages"][0]["content"] for request in endpoint.requests]
    assert [len(content) - 1 for content in parts] == [4, 2]
    assert parts[0][-1]["text"].endswith("outlined in red in one short sentence.")
    assert parts[1][-1]["text"] == (
        "These are 2 frames of a video in order. Which brand?"
    )


@pytest.mark.parametrize("region", ["alpha", "outline", "crop"])
def test_pictures(region: str) -> None:
    one = clip(3)
    url = picture(one.frames[0], one.masks[0], region)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
    if region == "alpha":
        assert np.array_equal(image[..., :3], one.frames[0])
        assert np.array_equal(image[..., 3] > 0, one.masks[0])
    elif region == "outline":
        assert image.shape == (48, 64, 3)
        red = (image[..., 0] > 180) & (image[..., 1:] < 90).all(axis=-1)
        assert red[10, 20:35].mean() > 0.8
    else:
        assert image.shape[2] == 3 and image.shape <= (48, 64, 3)


def test_nested_views_go_out_as_pictures_that_widen() -> None:
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        captioner = remote(url, model="vision", region="views", frames=4)
        (caption,) = captioner.caption([clip(0, 9)], prompt="short")
    assert caption.error is None
    *images, text = endpoint.requests[0]["messages"][0]["content"]
    assert text["text"].startswith("These are 3 cuts of one object, each wider.")
    sizes = []
    for image in images:
        data = base64.b64decode(image["image_url"]["url"].split(",")[1])
        width, height = Image.open(io.BytesIO(data)).size
        sizes.append(width * height)
    assert len(sizes) == 3 and sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "file:///etc"},
        {"base_url": "http://"},
        {"base_url": None},  # OpenAI's own needs a model
        {"region": "x"},
        {"timeout": 0},
        {"concurrency": 0},
        {"retries": -1},
    ],
)
def test_impossible_options(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises((BackendError, OptionError)):
        remote(**{"base_url": "http://127.0.0.1:9", **options})


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(said("<think>Cars? Yes.</think>\n\nA red car."), id="thought"),
        pytest.param(said("Cars? Yes.\n</think>A red car."), id="opened by the prompt"),
        pytest.param(said("A red car.", reasoning_content="Hm."), id="reasoning apart"),
        pytest.param(
            said(
                [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    {"type": "text", "text": "A red car."},
                ]
            ),
            id="thinking part",
        ),
        pytest.param(ended("A red car.", "stop"), id="no count of tokens"),
        pytest.param(said("A red car.", refusal=None), id="no refusal"),
    ],
)
def test_only_the_answer_is_the_caption(answer: Any) -> None:
    endpoint = Endpoint(answer)
    with endpoint.running() as url:
        (caption,) = remote(url).caption([clip()])
    assert (caption.text, caption.error, caption.tags) == ("A red car.", None, ())
    assert caption.tokens == 0


@pytest.mark.parametrize(
    ("finish", "mark"), [("length", "cut off"), ("content_filter", "filtered")]
)
def test_what_did_not_end_by_itself_is_marked(finish: str, mark: str) -> None:
    endpoint = Endpoint(ended("A red car that", finish))
    with endpoint.running() as url:
        (caption,) = remote(url).caption([clip()])
    assert (caption.text, caption.tags) == ("A red car that", ((mark, 1.0),))


def test_confidence_of_reasoning_is_not_that_of_the_caption() -> None:
    status, body = said("<think>Hm</think>A car")
    tokens = [{"token": "Hm", "logprob": -1.0}, {"token": "A", "logprob": None}]
    body["choices"][0]["logprobs"] = {"content": tokens}
    endpoint = Endpoint((status, body))
    with endpoint.running() as url:
        (caption,) = remote(url, confidence=True).caption([clip()])
    assert (caption.text, caption.confidence) == ("A car", None)


def test_refused_parameters_are_learned_once() -> None:
    endpoint = Endpoint(refuses("max_tokens", "temperature", "logprobs"))
    with endpoint.running() as url:
        captioner = remote(url, max_tokens=7, confidence=True, concurrency=1)
        captions = captioner.caption([clip(n) for n in range(3)])
    assert [caption.text for caption in captions] == ["A red car."] * 3
    assert len(endpoint.requests) == 6
    assert endpoint.requests[0].keys() >= {"max_tokens", "temperature", "logprobs"}
    for request in endpoint.requests[-3:]:
        assert request.keys() == {"model", "messages", "max_completion_tokens"}
        assert request["max_completion_tokens"] == 7


def test_refused_parameters_of_many_requests_at_once() -> None:
    endpoint = Endpoint(refuses("max_tokens", "max_completion_tokens", "temperature"))
    with endpoint.running() as url:
        captions = remote(url, concurrency=8).caption([clip(n) for n in range(16)])
    assert [caption.text for caption in captions] == ["A red car."] * 16
    assert endpoint.requests[-1].keys() == {"model", "messages"}


def test_a_date_to_retry_after_is_waited_for() -> None:
    endpoint = Endpoint((503, {}, ("retry-after", in_a_second())), GOOD)
    start = time.monotonic()
    with endpoint.running() as url:
        (caption,) = remote(url).caption([clip()])
    assert caption.text == "A red car."
    assert time.monotonic() - start > 0.9


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(401, {"error": {"message": "bad key"}}, id="key"),
        pytest.param(404, {"error": "no such model"}, id="model"),
        pytest.param(
            429, {"error": {"code": "insufficient_quota", "message": "pay"}}, id="quota"
        ),
    ],
)
def test_an_error_that_will_repeat_stops_the_work(status: int, body: dict) -> None:
    endpoint = Endpoint((status, body))
    captions = []
    with endpoint.running() as url:
        stream = remote(url, concurrency=1, retries=0).caption_stream(
            clip(n) for n in range(100)
        )
        with pytest.raises(FatalError, match=f"status {status}"):
            captions.extend(stream)
    assert [caption.error is None for caption in captions] == [False, False]
    assert len(endpoint.requests) < 10


def test_an_error_that_may_repeat_stops_nothing() -> None:
    refused = (401, {"error": "try again"})
    endpoint = Endpoint(refused, refused, GOOD, refused, refused, GOOD)
    with endpoint.running() as url:
        captions = remote(url, concurrency=1).caption([clip(n) for n in range(6)])
    assert [caption.error is None for caption in captions] == [False, False, True] * 2


# Secrets.


@pytest.mark.parametrize("key", [" sk-secret\n", "\tsk-secret\r\n"])
def test_keys_are_stripped(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", key)
        captions = [*remote().caption([clip()]), *remote(api_key=key).caption([clip()])]
    assert [caption.error for caption in captions] == [None, None]
    keys = [headers["Authorization"] for headers in endpoint.headers]
    assert keys == ["Bearer sk-secret"] * 2


@pytest.mark.parametrize("key", ["sk-secret\nHost: evil", "sk-secret\x00", "sk-söcret"])
def test_keys_that_no_header_can_hold(key: str) -> None:
    with pytest.raises(BackendError, match="copy it again") as error:
        remote("http://127.0.0.1:9/v1", api_key=key)
    assert key.split("\n")[0] not in str(error.value)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param((401, {"error": {"message": "Wrong key: sk-secret"}}), id="401"),
        pytest.param((500, b"Authorization: Bearer sk-secret"), id="500"),
        pytest.param((200, {"error": "sk-secret"}), id="200"),
        pytest.param((400, {"error": {"message": "user pa:ss? no"}}), id="password"),
        pytest.param(0.5, id="hangs"),
    ],
)
def test_no_secret_is_repeated(script: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    endpoint = Endpoint(script)
    with endpoint.running() as url:
        known = url.replace("//", "//someone:pa%3Ass@")
        for options, secrets in (
            ({"api_key": "sk-secret"}, ("sk-secret", "pa%3Ass", "pa:ss")),
            ({}, ("pa%3Ass", "pa:ss", "c29tZW9uZTpwYTpzcw")),
        ):
            captioner = remote(known, retries=0, timeout=0.3, **options)
            (caption,) = captioner.caption([clip()])
            assert caption.error is not None
            shown = caption.error + str(captioner.info) + caplog.text
            assert not [secret for secret in secrets if secret in shown]
    sent = [headers["Authorization"] for headers in endpoint.headers]
    assert sent == ["Bearer sk-secret", "Basic c29tZW9uZTpwYTpzcw=="]


def test_the_key_of_another_host_stays_at_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    endpoint = Endpoint(GOOD, (401, {"error": "no key"}))
    with endpoint.running() as url:
        first, second = remote(url, concurrency=1).caption([clip(0), clip(1)])
    assert first.text and "OPENAI_BASE_URL" in second.error
    for headers in endpoint.headers:
        assert "secret" not in str(headers) and "Authorization" not in headers


def test_a_redirect_to_another_host_gets_no_key() -> None:
    other = Endpoint(GOOD)
    with other.running() as elsewhere:
        place = f"{elsewhere}/chat/completions".replace("127.0.0.1", "localhost")
        endpoint = Endpoint((307, {}, ("location", place)))
        with endpoint.running() as url:
            remote(url, api_key="sk-secret").caption([clip()])
    assert [headers["Authorization"] for headers in endpoint.headers]
    assert not any("sk-secret" in str(headers) for headers in other.headers)


@pytest.mark.parametrize(
    ("url", "options", "fits"),
    [
        ("http://gpu.example:8000/v1", {"api_key": "k"}, False),
        ("http://gpu.example:8000/v1", {"api_key": "k", "insecure": True}, True),
        ("http://someone:password@gpu.example/v1", {}, False),
        ("http://gpu.example:8000/v1", {}, True),
        ("https://gpu.example/v1", {"api_key": "k"}, True),
        ("http://localhost:8000/v1", {"api_key": "k"}, True),
        ("http://[::1]:8000/v1", {"api_key": "k"}, True),
    ],
)
def test_keys_travel_encrypted(url: str, options: dict, fits: bool) -> None:
    if fits:
        remote(url, **options)
        return
    with pytest.raises(BackendError, match="unencrypted") as error:
        remote(url, **options)
    assert "password" not in str(error.value)


def test_this_machine_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        (caption,) = remote(url).caption([clip()])
    assert caption.error is None


def test_a_proxy_that_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:9")
    monkeypatch.delenv("all_proxy", raising=False)
    with pytest.raises(BackendError, match="proxy"):
        remote("http://gpu.example/v1")
