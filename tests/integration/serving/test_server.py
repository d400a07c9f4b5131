"""The server against recorded requests, OpenAI's client, and bad clients."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.models.sampling import GREEDY
from fiftyone_regioncap.serving import ServerSettings, running, serve
from fiftyone_regioncap.serving.messages import Limits
from tests.support.dam import write_checkpoint

QUESTION = "Describe the masked region in detail."


def png(rgba: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def rgba(seed: int = 0, size: int = 64) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 255, (size, size, 4), np.uint8)
    image[..., 3] = 0
    image[10:40, 10 + seed % 20 : 50, 3] = 255
    return image


def question(*urls: str, text: str = QUESTION) -> list[dict]:
    parts = [image_part(url) for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def dam(tmp_path_factory: pytest.TempPathFactory) -> DAM:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dam")
    write_checkpoint(folder)
    return DAM.from_pretrained(folder)


@pytest.fixture(scope="module")
def url(dam: DAM):
    limits = Limits(body_bytes=1 << 20, image_pixels=10_000, max_new_tokens=24)
    with running(dam, ServerSettings("tiny", sampling=GREEDY, limits=limits)) as url:
        yield url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def expected(
    dam: DAM, image: np.ndarray, text: str = QUESTION, tokens: int = 24
) -> str:
    views, _ = dam.prepare(image[..., :3], image[..., 3])
    return dam.generate([views], [f"<image>\n{text}"], tokens).texts[0]


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


class TestSafety:
    def test_requests_that_are_too_large(self, url: str) -> None:
        for content in (b"x" * (2 << 20), iter([b"x" * (1 << 19)] * 4)):
            answer = httpx.post(f"{url}/v1/chat/completions", content=content)
            assert answer.status_code == 413

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff"])
    def test_requests_that_are_no_requests(self, url: str, content: bytes) -> None:
        for path in ("/v1/chat/completions", "/chat/completions"):
            answer = httpx.post(f"{url}{path}", content=content)
            assert answer.status_code in (400, 500)
            assert answer.json()["error"]

    def test_other_names_for_this_machine(self, url: str) -> None:
        answer = httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"})
        assert answer.status_code == 400

    def test_beyond_loopback_with_a_token_only(self, dam: DAM) -> None:
        with pytest.raises(BackendError, match="token"):
            serve(dam, ServerSettings(), host="0.0.0.0", port=0)
        settings = ServerSettings("tiny", token="secret", sampling=GREEDY)
        with running(dam, settings, host="0.0.0.0") as url:
            url = url.replace("0.0.0.0", "127.0.0.1")
            assert httpx.get(f"{url}/v1/models").status_code == 401
            for token, status in (("wrong", 401), ("secret", 200)):
                headers = {"Authorization": f"Bearer {token}"}
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
        with pytest.raises(BackendError, match="cannot listen"):
            serve(dam, ServerSettings(), port=port)


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
    limits = Limits(max_new_tokens=recorded["server_flags"]["max_new_tokens"])

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
