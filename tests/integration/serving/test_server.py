"""The server against recorded requests, OpenAI's client, and bad clients."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request

from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.scheduler import Update
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.models.sampling import GREEDY
from fiftyone_regioncap.serving import ServerSettings, app, running, serve
from fiftyone_regioncap.serving.messages import RequestError, RequestLimits, parse
from fiftyone_regioncap.serving.server import check_address
from tests.support.dam import generate, write_checkpoint
from tests.support.serving import QUESTION, png, question, rgba

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def dam(tmp_path_factory: pytest.TempPathFactory) -> DAM:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dam")
    write_checkpoint(folder)
    return DAM.from_pretrained(folder)


@pytest.fixture(scope="module")
def url(dam: DAM):
    limits = RequestLimits(body_bytes=1 << 20, image_pixels=10_000, max_new_tokens=24)
    with running(dam, ServerSettings("tiny", sampling=GREEDY, limits=limits)) as url:
        yield url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def expected(
    dam: DAM, image: np.ndarray, text: str = QUESTION, tokens: int = 24
) -> str:
    views, _ = dam.prepare(image[..., :3], image[..., 3])
    return generate(dam, [views], [f"<image>\n{text}"], tokens).texts[0]


class TestOpenAIClient:
    def test_answer(self, dam: DAM, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(
            model="tiny", messages=question(png(rgba())), logprobs=True
        )
        choice = answer.choices[0]
        assert choice.message.content == expected(dam, rgba())
        assert choice.finish_reason in ("stop", "length")
        assert answer.usage.completion_tokens == len(choice.logprobs.content)
        assert all(token.logprob <= 0 for token in choice.logprobs.content)

    def test_stream(self, dam: DAM, client: openai.OpenAI) -> None:
        chunks = list(
            client.chat.completions.create(
                model="tiny",
                messages=question(png(rgba(1))),
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(pieces).strip() == expected(dam, rgba(1))
        assert chunks[-1].usage.completion_tokens > 0
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1]

    def test_fields_of_the_request_are_honoured(
        self, dam: DAM, client: openai.OpenAI
    ) -> None:
        def ask(**fields: object) -> str:
            answer = client.chat.completions.create(
                model="tiny", messages=question(png(rgba(2))), **fields
            )
            return answer.choices[0].message.content

        assert ask(max_tokens=3) == expected(dam, rgba(2), tokens=3)
        assert ask(max_completion_tokens=4) == expected(dam, rgba(2), tokens=4)
        warm = {"temperature": 1.5, "top_p": 1.0, "extra_body": {"top_k": 0}}
        assert ask(seed=1, **warm) == ask(seed=1, **warm)
        assert len({ask(seed=seed, **warm) for seed in range(4)}) > 1

    def test_models(self, client: openai.OpenAI) -> None:
        names = {model.id for model in client.models.list()}
        assert names == {"tiny", "describe_anything_model"}

    def test_one_model(self, client: openai.OpenAI) -> None:
        assert client.models.retrieve("tiny").id == "tiny"
        with pytest.raises(openai.NotFoundError, match="no model a/b"):
            client.models.retrieve("a/b")

    def test_a_message_of_the_system(self, dam: DAM, client: openai.OpenAI) -> None:
        for role in ("system", "developer"):
            answer = client.chat.completions.create(
                model="tiny",
                messages=[
                    {"role": role, "content": "Be brief."},
                    *question(png(rgba())),
                ],
            )
            text = f"Be brief.\n{QUESTION}"
            assert answer.choices[0].message.content == expected(dam, rgba(), text)

    @pytest.mark.parametrize("several", [False, True])
    def test_stop(self, dam: DAM, client: openai.OpenAI, several: bool) -> None:
        whole = expected(dam, rgba())
        middle = len(whole) // 2
        stop = whole[middle : middle + 3]
        stops = ["never said", stop] if several else stop
        body = {"model": "tiny", "messages": question(png(rgba())), "stop": stops}
        answer = client.chat.completions.create(**body, logprobs=True)
        choice = answer.choices[0]
        assert choice.message.content == whole[: whole.find(stop)].strip()
        assert choice.finish_reason == "stop"
        assert 0 < answer.usage.completion_tokens == len(choice.logprobs.content) <= 24
        chunks = [
            chunk.choices[0]
            for chunk in client.chat.completions.create(**body, stream=True)
        ]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        assert text.strip() == choice.message.content
        assert chunks[-1].finish_reason == "stop"

    def test_stops_that_never_come(self, dam: DAM, client: openai.OpenAI) -> None:
        whole = expected(dam, rgba())
        body = {
            "model": "tiny",
            "messages": question(png(rgba())),
            "stop": [whole[-4:] + "!" * 50],
        }
        answer = client.chat.completions.create(**body)
        assert answer.choices[0].message.content == whole
        chunks = client.chat.completions.create(**body, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text.strip() == whole

    @pytest.mark.parametrize(
        ("field", "value", "status"),
        [
            pytest.param("max_tokens", 1.5, 400, id="half a token"),
            pytest.param("max_tokens", True, 400, id="a bool"),
            pytest.param("max_completion_tokens", 0, 400, id="no token"),
            pytest.param("seed", 0.5, 400, id="half a seed"),
            pytest.param("top_k", 2.5, 400, id="half a word"),
            pytest.param("temperature", 1e-300, 200, id="nearly greedy"),
            pytest.param("temperature", 1e15, 200, id="hot"),
            pytest.param("stream", "yes", 400, id="text for a bool"),
            pytest.param("stop", ["a"] * 5, 400, id="five stops"),
            pytest.param("stop", [""], 400, id="an empty stop"),
            pytest.param("stop", {"a": 1}, 400, id="no stop"),
            pytest.param("model", ["tiny"], 404, id="a list for a name"),
        ],
    )
    def test_one_odd_request_among_others(
        self, dam: DAM, url: str, field: str, value: object, status: int
    ) -> None:
        body = {"model": "tiny", "messages": question(png(rgba()))}

        def ask(fields: dict) -> httpx.Response:
            return httpx.post(
                f"{url}/v1/chat/completions", json={**body, **fields}, timeout=120
            )

        with ThreadPoolExecutor(4) as pool:
            odd, *others = pool.map(ask, [{field: value}, {}, {}, {}])
        assert odd.status_code == status, odd.text
        for other in others:
            said = other.json()["choices"][0]["message"]["content"]
            assert said == expected(dam, rgba())

    @pytest.mark.parametrize("where", ["text", "stop"])
    def test_half_a_character(self, dam: DAM, url: str, where: str) -> None:
        text = QUESTION + ("\ud800" if where == "text" else "")
        body = {"model": "tiny", "messages": question(png(rgba()), text=text)}
        if where == "stop":
            body["stop"] = "\udfff"
        content = json.dumps(body)

        def ask(content: str) -> httpx.Response:
            path = f"{url}/v1/chat/completions"
            return httpx.post(path, content=content, headers=JSON, timeout=120)

        good = json.dumps({"model": "tiny", "messages": question(png(rgba()))})
        with ThreadPoolExecutor(3) as pool:
            odd, *others = pool.map(ask, [content, good, good])
        assert odd.status_code == 400 and "half a character" in odd.text
        assert [other.status_code for other in others] == [200, 200]

    def test_many_at_once_are_answered_together(
        self, dam: DAM, client: openai.OpenAI
    ) -> None:
        images = [rgba(seed) for seed in range(12)]

        def ask(image: np.ndarray) -> str:
            answer = client.chat.completions.create(
                model="tiny", messages=question(png(image))
            )
            return answer.choices[0].message.content

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, images))
        assert answers == [expected(dam, image) for image in images]

    @pytest.mark.parametrize(
        ("messages", "fields", "error"),
        [
            (question(png(rgba())), {"model": "gpt-x"}, openai.NotFoundError),
            (question("data:image/webp;base64,AAAA"), {}, openai.BadRequestError),
            (question("data:image/png;base64,AAAA"), {}, openai.BadRequestError),
            (question("data:image/png;base64,!"), {}, openai.BadRequestError),
            (question("http://127.0.0.1/x.png"), {}, openai.BadRequestError),
            (question("file:///etc/passwd"), {}, openai.BadRequestError),
            (question(png(rgba()[..., :3])), {}, openai.BadRequestError),
            (question(png(rgba() * 0)), {}, openai.BadRequestError),
            (question(png(rgba()), png(rgba())), {}, openai.BadRequestError),
            (question(), {}, openai.BadRequestError),
            (question(png(rgba()), text="see <image>"), {}, openai.BadRequestError),
            (question(png(rgba()), text="why " * 3000), {}, openai.BadRequestError),
            ([{"role": "system", "content": "x"}], {}, openai.BadRequestError),
            (
                [{"role": "user", "content": [{"type": "x"}]}],
                {},
                openai.BadRequestError,
            ),
            (question(png(rgba())), {"temperature": -1}, openai.BadRequestError),
            (question(png(rgba())), {"top_p": 0}, openai.BadRequestError),
            (question(png(rgba())), {"max_tokens": -3}, openai.BadRequestError),
            (question(png(rgba())), {"n": 2}, openai.BadRequestError),
            (question(png(rgba(size=101))), {}, openai.APIStatusError),
        ],
    )
    def test_bad_requests(
        self, client: openai.OpenAI, messages: list, fields: dict, error: type
    ) -> None:
        with pytest.raises(error) as caught:
            client.chat.completions.create(
                **{"model": "tiny", "messages": messages, **fields}
            )
        assert 400 <= caught.value.status_code < 500
        assert caught.value.body["message"]

    def test_a_client_that_goes_away_mid_answer(
        self, dam: DAM, client: openai.OpenAI
    ) -> None:
        stream = client.chat.completions.create(
            model="tiny", messages=question(png(rgba(3))), stream=True
        )
        next(iter(stream))
        stream.close()
        answer = client.chat.completions.create(
            model="tiny", messages=question(png(rgba(4)))
        )
        assert answer.choices[0].message.content == expected(dam, rgba(4))


class TestFaults:
    """Faults of the server are its own: clients may try again, and the log tells."""

    def test_a_model_that_fails(
        self, dam: DAM, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def ask(**fields: object) -> object:
            return client.chat.completions.create(
                model="tiny", messages=question(png(rgba())), **fields
            )

        with monkeypatch.context() as patch:
            patch.setattr(dam, "encode", fail)
            with pytest.raises(openai.InternalServerError, match="no such kernel"):
                ask()
            with pytest.raises(openai.APIError, match="no such kernel") as caught:
                list(ask(stream=True))
            assert caught.value.body["type"] == "server_error"
        assert ask().choices[0].message.content == expected(dam, rgba())

    def test_a_fault_of_the_server_is_logged(
        self,
        dam: DAM,
        client: openai.OpenAI,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(type(dam.processor), "views", fail)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=question(png(rgba())))
        end = time.monotonic() + 30  # it is logged after the answer
        while "no such kernel" not in caplog.text and time.monotonic() < end:
            time.sleep(0.05)
        assert "no such kernel" in caplog.text

    def test_an_answer_that_nobody_waits_for_is_canceled(self) -> None:
        closed = []

        async def updates() -> AsyncGenerator[Update, None]:
            try:
                await asyncio.Event().wait()
                yield Update(0)
            finally:
                closed.append(True)

        async def receive() -> dict:
            return {"type": "http.disconnect"}

        async def answer() -> None:
            request = Request({"type": "http"}, receive)
            with pytest.raises(RequestError, match="client is gone"):
                await asyncio.wait_for(app._answer(request, updates()), 30)
            await asyncio.sleep(0)

        asyncio.run(answer())
        assert closed


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("no such kernel")


class TestSafety:
    def test_requests_that_are_too_large(self, url: str) -> None:
        for content in (b"x" * (2 << 20), iter([b"x" * (1 << 19)] * 4)):
            answer = httpx.post(f"{url}/v1/chat/completions", content=content)
            assert answer.status_code == 413

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"{", b"[]", b'"x"', b"\xff", b'{"seed": NaN}', b"[" * 100_000),
            b'{"seed": ' + b"9" * 10_000 + b"}",
        ],
    )
    def test_requests_that_are_no_requests(self, url: str, content: bytes) -> None:
        for path in ("/v1/chat/completions", "/chat/completions"):
            answer = httpx.post(f"{url}{path}", content=content, headers=JSON)
            assert answer.status_code in (400, 500)
            assert answer.json()["error"]

    @pytest.mark.parametrize("kind", ["text/plain", "", "multipart/form-data"])
    def test_what_a_web_page_may_send(self, url: str, kind: str) -> None:
        for path in ("/v1/chat/completions", "/chat/completions"):
            headers = {"Content-Type": kind} if kind else {}
            answer = httpx.post(f"{url}{path}", content=b"{}", headers=headers)
            assert answer.status_code == 415

    @pytest.mark.parametrize(
        "headers", ["", "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"]
    )
    def test_a_request_that_never_ends(self, dam: DAM, headers: str) -> None:
        limits = RequestLimits(block_seconds=0.5, body_seconds=2)
        settings = ServerSettings("tiny", sampling=GREEDY, limits=limits)
        with running(dam, settings) as url:
            port = int(url.rsplit(":", 1)[1])
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(headers.encode())
                if headers:
                    client.sendall(b"Content-Length: 900\r\n\r\n{")
                begun = time.perf_counter()
                answer = b""
                while block := client.recv(1000):
                    answer += block
                assert time.perf_counter() - begun < 10
            assert not headers or b" 408 " in answer.split(b"\r\n")[0]

    def test_a_request_that_drips(self, dam: DAM) -> None:
        limits = RequestLimits(block_seconds=0.5, body_seconds=1)
        settings = ServerSettings("tiny", sampling=GREEDY, limits=limits)

        def drops() -> Iterator[bytes]:
            for _ in range(30):
                yield b" "
                time.sleep(0.2)

        with running(dam, settings) as url:
            begun = time.perf_counter()
            try:
                answer = httpx.post(
                    f"{url}/v1/chat/completions", content=drops(), headers=JSON
                )
                assert answer.status_code == 408
            except httpx.TransportError:  # closed before it was read
                pass
            assert time.perf_counter() - begun < 5

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("evil.example", 400),
            ("localhost.evil.example:80", 400),
            ("localhost@evil.example", 400),
            ("192.168.0.1", 400),
            ("[::2]", 400),
            ("[localhost", 400),
            ("LOCALHOST:80", 200),
            ("127.0.0.9:80", 200),
            ("[::1]", 200),
            ("[::1]:80", 200),
        ],
    )
    def test_names_for_this_machine(self, url: str, host: str, status: int) -> None:
        answer = httpx.get(f"{url}/v1/models", headers={"Host": host})
        assert answer.status_code == status

    @pytest.mark.parametrize("token", ["pässword", "two words", "secret\n"])
    def test_a_token_that_no_client_can_send(self, token: str) -> None:
        with pytest.raises(BackendError, match="token"):
            check_address(ServerSettings(token=token), "127.0.0.1", 0)

    def test_beyond_loopback_with_a_token_only(self, dam: DAM) -> None:
        with pytest.raises(BackendError, match="token"):
            serve(dam, ServerSettings(), host="0.0.0.0", port=0)
        settings = ServerSettings("tiny", token="secret", sampling=GREEDY)
        with running(dam, settings, host="0.0.0.0") as url:
            url = url.replace("0.0.0.0", "127.0.0.1")
            assert httpx.get(f"{url}/v1/models").status_code == 401
            for token, status in (
                ("Bearer wrong", 401),
                ("Bearer", 401),
                ("", 401),
                ("Basic secret", 401),
                ("Bearer secret", 200),
                ("bearer secret", 200),
                ("BEARER  secret", 200),
                ("secret", 200),
            ):
                headers = {"Authorization": token}
                for path in ("/v1/chat/completions", "/chat/completions"):
                    answer = httpx.post(
                        f"{url}{path}",
                        headers=headers,
                        json={
                            "model": "tiny",
                            "messages": question(png(rgba())),
                            "max_tokens": 2,
                        },
                        timeout=60,
                    )
                    assert answer.status_code == status

    def test_an_address_in_use(self, dam: DAM, url: str) -> None:
        port = int(url.rsplit(":", 1)[1])
        for host, number in (("127.0.0.1", port), ("127.0.0.1", 99999)):
            with pytest.raises(BackendError, match="cannot listen"):
                serve(dam, ServerSettings(), host=host, port=number)


# -- requests as data


def big_png(side: int) -> str:
    """A small file of many pixels."""
    file = io.BytesIO()
    Image.new("RGBA", (side, side), (9, 9, 9, 255)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def asking(*urls: str) -> dict:
    return {"model": "tiny", "messages": question(*urls)}


def test_images_are_counted_and_measured_before_any_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda image: decoded.append(image.width)
    )
    models, limits = frozenset({"tiny"}), RequestLimits(image_pixels=1_000_000)
    image = IMAGES[0]
    for urls, says in (([image] * 9, "more than 8 images"), (IMAGES, "at most")):
        with pytest.raises(RequestError, match=says):
            parse(asking(*urls), models, GREEDY, limits)
    chat = parse(asking(image), models, GREEDY, limits)
    assert chat.pixels == 810_000 and decoded == []


def test_large_images_are_decoded_one_after_the_other(
    dam: DAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six requests of many pixels; what is decoded at once stays within the limit."""
    at_work = most = 0
    lock = threading.Lock()
    views = dam.processor.views

    def counted(image: Image.Image, *rest: object) -> object:
        nonlocal at_work, most
        with lock:
            at_work += image.width * image.height
            most = max(most, at_work)
        time.sleep(0.05)
        try:
            return views(image, *rest)
        finally:
            with lock:
                at_work -= image.width * image.height

    monkeypatch.setattr(dam.processor, "views", counted)
    limits = RequestLimits(decoded_pixels=2_000_000, max_new_tokens=2)
    settings = ServerSettings("tiny", sampling=GREEDY, limits=limits)
    bodies = [
        {"model": "tiny", "messages": question(IMAGES[number])}
        for number in (0, 1, 0, 0, 1, 0)
    ]
    with running(dam, settings) as url, ThreadPoolExecutor(6) as pool:
        answers = pool.map(
            lambda body: (
                httpx.post(
                    f"{url}/v1/chat/completions", json=body, timeout=120
                ).status_code
            ),
            bodies,
        )
        assert list(answers) == [200] * 6
    # One of 2.25 megapixels alone, or two of 0.81.
    assert most == 2_250_000


IMAGES = [big_png(900), big_png(1500)]
SMALL = png(rgba())

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=9)
    | st.sampled_from(["user", "text", "tiny", "image_url", "\ud800", SMALL]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image_url", "url"]),
            inner,
        )
    ),
    max_leaves=8,
)
FIELDS = (
    *("messages", "model", "n", "num_beams", "max_tokens", "max_completion_tokens"),
    *("stream_options", "temperature", "top_k", "top_p", "seed", "stop", "stream"),
    "logprobs",
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), anything), st.booleans())
def test_any_request_is_read_or_refused(body: dict, system: bool) -> None:
    good = {"model": "tiny", "messages": question(SMALL)}
    for request in (body, {**good, **body}):
        try:
            chat = parse(
                request, frozenset({"tiny"}), GREEDY, RequestLimits(), system=system
            )
            chat.query(False)
        except RequestError as error:
            assert str(error) and 400 <= error.status < 500


# -- the recorded answers of the authors' server --------------------------------------

DEVIATIONS = {
    # The authors' words come from inside numpy.
    "image: fully transparent image": "mask is empty",
    "image: fully transparent image, stream": "mask is empty",
    # A bad URL is not sent back whole.
    "image: webp mime": "Invalid image url: data:image/webp;base64",
}


def fill(value: object, images: list[str]) -> object:
    """Puts images in the place of placeholders."""
    if isinstance(value, dict):
        return {key: fill(part, images) for key, part in value.items()}
    if isinstance(value, list):
        return [fill(part, images) for part in value]
    if isinstance(value, str) and "<base64 of PNG>" in value:
        return value.replace("<base64 of PNG>", images.pop(0).split(",")[1])
    return value


def images_of(golden: Path, row: dict) -> list[str]:
    count = json.dumps(row["request"]).count("<base64 of PNG>")
    if not row.get("inputs"):
        # Rows of errors name no input: what they need is in their names.
        image = rgba()
        if "no alpha" in row["name"]:
            image = image[..., :3]
        if "transparent" in row["name"]:
            image[..., 3] = 0
        return [png(image)] * count
    urls = []
    for name in row["inputs"]:
        image = np.asarray(Image.open(golden / f"inputs/{name}.png").convert("RGB"))
        mask = np.asarray(Image.open(golden / f"inputs/{name}_mask.png").convert("L"))
        urls.append(png(np.dstack([image, mask])))
    return urls


def volatile(text: str) -> str:
    text = re.sub(r'"id": ?"[0-9a-f]{32}"', '"id": "<32 hex>"', text)
    text = re.sub(r'"created": ?\d+\.\d+', '"created": "<float seconds>"', text)
    return re.sub(r'"created": ?\d+', '"created": <int>', text)


@pytest.fixture(scope="module")
def recorded_server(golden: Path):
    torch.set_num_threads(1)
    folder = golden / "dam" if (golden / "dam").is_dir() else golden
    if not (folder / "server.json").is_file():
        pytest.skip(f"no recorded requests in {folder}")
    recorded = json.loads((folder / "server.json").read_text())
    dam = DAM.from_pretrained(folder / "checkpoint")
    limits = RequestLimits(max_new_tokens=recorded["server_flags"]["max_new_tokens"])

    def settings(video: bool) -> ServerSettings:
        return ServerSettings("checkpoint", video=video, sampling=GREEDY, limits=limits)

    # Two servers on one model would get into each other's way.
    other = DAM.from_pretrained(folder / "checkpoint")
    with (
        running(dam, settings(False)) as image,
        running(other, settings(True)) as joint,
    ):
        yield folder, recorded["rows"], {"image": image, "joint": joint}


def test_recorded_requests(recorded_server: tuple) -> None:
    folder, rows, urls = recorded_server
    for row in rows:
        if "request" not in row:
            # The authors' server has no /v1; OpenAI's clients ask for nothing else.
            assert "/v1/" in row["name"] and row["status"] == 404
            continue
        url = urls[row["name"].split(":")[0]]
        request = fill(row["request"], images_of(folder, row))
        if row["name"] == "image: request sampling parameters are ignored":
            # Here they count, so that they must not be sent to get that answer.
            assert request.pop("max_tokens") and request.pop("temperature")
        elif request.get("temperature") and request.get("max_tokens"):
            # Recorded with a server that is told to be greedy and doesn't listen.
            request["temperature"] = 0
        answer = httpx.post(f"{url}/chat/completions", json=request, timeout=120)
        assert answer.status_code == row["status"], (row["name"], answer.text)
        assert answer.headers["content-type"] == row["content_type"]
        ours = volatile(answer.text)
        if row["name"] in DEVIATIONS:
            assert DEVIATIONS[row["name"]] in answer.text
        elif row.get("raw_body"):
            assert ours == row["raw_body"], row["name"]
        else:
            assert json.loads(ours) == row["json"], row["name"]


def test_requests_share_the_model(url: str, dam: DAM) -> None:
    """Twelve requests at once take far less than twelve times one."""
    body = {"model": "tiny", "messages": question(png(rgba()))}

    def ask(_: int) -> float:
        begun = time.perf_counter()
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
        return time.perf_counter() - begun

    ask(0)
    begun = time.perf_counter()
    for number in range(12):
        ask(number)
    alone = time.perf_counter() - begun
    begun = time.perf_counter()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(12)))
    assert time.perf_counter() - begun < alone
