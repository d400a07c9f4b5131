"""The remote captioner against our own server and endpoints that misbehave."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fiftyone_regioncap.captioning.dam.captioner import (
    DamCaptioner,
    DamVideoCaptioner,
)
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.openai import OpenAICaptioner, picture
from fiftyone_regioncap.core.errors import BackendError
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
        remote = OpenAICaptioner(
            base_url=f"{url}/v1",
            frames=8 if video else 1,
            max_tokens=12,
            confidence=True,
        )
        answers = remote.caption(clips)
    for ours, theirs in zip(answers, local, strict=True):
        assert (ours.text, ours.tokens) == (theirs.text, theirs.tokens)
        assert (ours.error is None) == (theirs.error is None)
        if ours.confidence is not None:
            assert 0 < ours.min_confidence <= ours.confidence <= 1


def test_the_authors_dialect(dam: DAM) -> None:
    with running(dam, ServerSettings(sampling=GREEDY)) as url:
        (caption,) = OpenAICaptioner(base_url=url, max_tokens=12).caption([clip()])
    (local,) = DamCaptioner(dam, DamOptions(max_new_tokens=12)).caption([clip()])
    assert caption.text == local.text


class Endpoint:
    """An endpoint that answers as a script says, one entry a request."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.requests: list[dict] = []
        self.headers: list[dict] = []
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
                endpoint.headers.append(dict(self.headers))
                script = endpoint.script
                reply = script.pop(0) if len(script) > 1 else script[0]
                with endpoint.lock:
                    endpoint.at_once -= 1
                self.reply(reply)

            def reply(self, reply: Any) -> None:
                if isinstance(reply, float):
                    time.sleep(reply)
                    return
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


def said(text: Any) -> tuple[int, dict]:
    return 200, {"choices": [{"message": {"content": text}}]}


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
        pytest.param([said([{"type": "text", "text": "A red car."}])], 1, id="a list"),
    ],
)
def test_patience(script: list, requests: int) -> None:
    endpoint = Endpoint(*script)
    with endpoint.running() as url:
        captioner = OpenAICaptioner(base_url=url, timeout=0.5, retries=3)
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
    ],
)
def test_an_error_of_that_clip(script: list, reason: str, requests: int) -> None:
    endpoint = Endpoint(*script)
    with endpoint.running() as url:
        captioner = OpenAICaptioner(base_url=url, timeout=0.3, retries=1)
        (caption,) = captioner.caption([clip()])
    assert caption.text == "" and reason in caption.error
    assert len(endpoint.requests) == requests


def test_nobody_there() -> None:
    captioner = OpenAICaptioner(base_url="http://127.0.0.1:9/v1", retries=0)
    assert "no connection" in captioner.caption([clip()])[0].error


def test_several_at_once_in_order() -> None:
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        captioner = OpenAICaptioner(base_url=url, concurrency=4, model="vision")
        stream = captioner.caption_stream(clip(n, empty=n % 3 == 0) for n in range(30))
        errors = [caption.error is not None for caption in stream]
    assert errors == [n % 3 == 0 for n in range(30)]
    assert endpoint.most <= 4


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
        OpenAICaptioner().caption([clip()])
        OpenAICaptioner(api_key="given").caption([clip()])
    keys = [headers["Authorization"] for headers in endpoint.headers]
    assert keys == ["Bearer from-environment", "Bearer given"]


def test_prompts() -> None:
    endpoint = Endpoint(GOOD)
    with endpoint.running() as url:
        captioner = OpenAICaptioner(base_url=url, model="vision", frames=4)
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
        captioner = OpenAICaptioner(
            base_url=url, model="vision", region="views", frames=4
        )
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
    with pytest.raises(BackendError):
        OpenAICaptioner(**{"base_url": "http://127.0.0.1:9", **options})
