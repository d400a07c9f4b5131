"""Random damage to all that comes from outside; nothing may escape the checks.

``REGIONCAP_FUZZ`` is the number of examples of each test.
"""

from __future__ import annotations

import builtins
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from starlette.testclient import TestClient

from fiftyone_regioncap.captioning.dam.config import DAMConfig
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.patchioner.checkpoint import Checkpoint
from fiftyone_regioncap.captioning.ureca.config import UrecaConfig
from fiftyone_regioncap.cli.commands import command_of
from fiftyone_regioncap.core.errors import RegionCapError, WeightsError
from fiftyone_regioncap.exporters import ExportError
from fiftyone_regioncap.exporters.reading import BrokenVideo, ImportedVideo
from fiftyone_regioncap.exporters.registry import FORMATS
from fiftyone_regioncap.models.loading import read_tensors, read_torch, weight_files
from fiftyone_regioncap.models.sampling import GREEDY
from fiftyone_regioncap.operations import OPERATIONS
from fiftyone_regioncap.propagation.sam2 import weights as sam2
from fiftyone_regioncap.serving import ServerSettings, create_app
from fiftyone_regioncap.serving.messages import RequestLimits
from tests.support.dam import write_checkpoint
from tests.support.formats import DOCUMENTS, ODD, damaged, read, write
from tests.support.serving import png, question, rgba

EXAMPLES = int(os.environ.get("REGIONCAP_FUZZ", "10000"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def damaged_bytes(draw: Callable[[st.SearchStrategy[Any]], Any], data: bytes) -> bytes:
    """Cuts a file off, or changes some of its bytes."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(found)))
        if draw(st.integers(0, 9)) == 0:
            del found[place:]
        else:
            found[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(found)


# -- files of other tools --------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one file at a time."""
    return tmp_path_factory.mktemp("files")


def is_unforeseen(error: str) -> bool:
    """Returns whether an error is Python's own, which no check has raised."""
    name = error.partition(":")[0]
    return isinstance(getattr(builtins, name, None), type)


@fuzz
@given(st.data())
def test_importers(folder: Path, data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(DOCUMENTS)))
    root = damaged(data.draw, DOCUMENTS[name][1]())
    if name == "jsonl" and not isinstance(root, list):
        root = [root]
    try:
        videos = read(folder / name, name, root)
    except ExportError:
        return
    for video in videos:
        if isinstance(video, BrokenVideo):
            assert not is_unforeseen(video.error), video.error
            str(video.name).encode("utf-8", "backslashreplace")
            continue
        assert isinstance(video, ImportedVideo)
        for masks in video.masks.values():
            assert all(mask.size == video.size for mask in masks.values())
            assert all(-(2**63) <= index < 2**63 for index in masks)
        for text in [*video.labels.values(), video.name]:
            text.encode()
        for record in video.captions.values():
            record.caption.encode()
            assert -(2**63) <= record.index < 2**63
        assert all(math.isfinite(score) for score in video.scores.values())


@fuzz
@given(st.data())
def test_importers_of_bytes(folder: Path, data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(DOCUMENTS)))
    path = write(folder / name, name, DOCUMENTS[name][1]())
    path.write_bytes(damaged_bytes(data.draw, path.read_bytes()))
    try:
        videos = list(FORMATS[name].read(folder / name))
    except ExportError:
        return
    for video in videos:
        if isinstance(video, BrokenVideo):
            assert not is_unforeseen(video.error), video.error


# -- options ---------------------------------------------------------------------------

values = st.sampled_from(ODD) | st.text(max_size=5) | st.integers() | st.floats()
WORDS = [
    *("", " ", "0", "-1", "1", "nan", "inf", "9" * 30, "none", "null", "true"),
    *("[]", "{}", "[1,2", "a,b", "1,2,3,4", "auto", "measured", "flow", "openai"),
    *("x=1", "x=[", "=", "a b", "filepath", "frames.", "frames.x", "_", "/dev"),
    *("\udcff", "a\0b", "../..", "~", "http://u:p@h", "change", "-", "--", "text"),
]
words = st.sampled_from(WORDS) | st.text(max_size=6)


@fuzz
@given(st.data())
def test_options_of_operations(data: Any) -> None:
    operation = OPERATIONS[data.draw(st.sampled_from(sorted(OPERATIONS)))]
    names = st.sampled_from([*operation.parameters(), "nothing"])
    given_values = data.draw(st.dictionaries(names, values, max_size=5))
    for field in operation.fields:  # so that the others are looked at
        if field.required:
            given_values.setdefault(field.name, "text")
    try:
        operation.parse(given_values)
    except RegionCapError as error:
        assert str(error)


@fuzz
@given(st.data())
def test_options_of_the_shell(data: Any) -> None:
    operation = OPERATIONS[data.draw(st.sampled_from(sorted(OPERATIONS)))]
    command = command_of(operation)
    flags = [flag for one in command.params for flag in one.opts if flag[0] == "-"]
    tokens = st.sampled_from(flags) | words
    arguments = ["--dataset", "x", *data.draw(st.lists(tokens, max_size=6))]
    try:
        with command.make_context("regioncap", arguments) as context:
            given_values = {
                key: value
                for key, value in context.params.items()
                if value not in (None, ()) and key in operation.parameters()
            }
        operation.parse(
            {
                key: dict(value) if key.endswith("options") else value
                for key, value in given_values.items()
            }
        )
    except (click.ClickException, click.exceptions.Exit, RegionCapError) as error:
        assert error is not None


# -- weights ---------------------------------------------------------------------------

URECA = {
    "vision_config": {
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 64, "image_size": 56, "patch_size": 14},
    },
    "llm_config": {
        **{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 300},
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 64, "max_position_embeddings": 256},
        **{"rms_norm_eps": 1e-6, "rope_theta": 1e6, "num_key_value_heads": 2},
        **{"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    },
    **{"select_layer": -1, "ps_version": "v2", "template": "mug-cap"},
    **{"downsample_ratio": 0.5, "force_image_size": 56, "num_mask_token": 8},
}
PATCHIONER = {
    **{"prefix_size": 64, "support_memory_size": 10, "dino_model": "dinov2_vitb14_reg"},
    **{"normalize": True, "resize_dim": 56, "heads": 4, "compat": "fixed"},
    "viecap": {"weight_path": "x.pt", "top_k": 3, "meacap": {"memory_id": "m"}},
}


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any]
) -> Path:
    """A folder with a checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(folder / "dam")
    for kind in ("sam2", "edgetam", "sam3-tracker"):
        make_model(kind).config.save_pretrained(folder / kind)
    for name in ("ureca", "patchioner", "index"):
        (folder / name).mkdir()
    (folder / "ureca/config.json").write_text(json.dumps(URECA))
    (folder / "patchioner/config.yaml").write_text(yaml.safe_dump(PATCHIONER))
    (folder / "patchioner/x.pt").write_bytes(b"x")
    index = {"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / "index/model.safetensors.index.json").write_text(json.dumps(index))
    for name in "ab":
        tensors = {name: torch.ones(2), f"{name}2": torch.zeros(1, 3)}
        save_file(tensors, folder / f"index/{name}.safetensors")
    torch.save({"model": {"a": torch.ones(2)}}, folder / "a.pt")
    np.savez(folder / "a.npz", a=np.ones(2))
    return folder


READERS: dict[str, Callable[[Path], Any]] = {
    "dam": DAMConfig.read,
    "ureca": UrecaConfig.read,
    "sam2": lambda folder: sam2.load_config(folder, sam2.SAM2),
    "edgetam": lambda folder: sam2.load_config(folder, sam2.EDGETAM),
    "sam3-tracker": lambda folder: sam2.load_config(folder, sam2.SAM3_TRACKER),
    "patchioner": Checkpoint.open,
    "index": weight_files,
}


@fuzz
@given(st.data())
def test_configurations_of_weights(checkpoints: Path, data: Any) -> None:
    kind = data.draw(st.sampled_from(sorted(READERS)))
    files = sorted(
        path
        for path in (checkpoints / kind).rglob("*")
        if path.suffix in (".json", ".yaml")
    )
    path = data.draw(st.sampled_from(files))
    whole = path.read_text()
    text = json.dumps(damaged(data.draw, yaml.safe_load(whole)))  # JSON is YAML too
    try:
        path.write_text(text)
        READERS[kind](checkpoints / kind)
    except RegionCapError as error:
        assert "weights_only" not in str(error)
    finally:
        path.write_text(whole)


@fuzz
@given(st.data())
def test_files_of_weights(checkpoints: Path, data: Any) -> None:
    name = data.draw(st.sampled_from(["a.pt", "a.npz", "index/a.safetensors"]))
    path = checkpoints / name
    copy = path.with_name(f"damaged{path.suffix}")
    copy.write_bytes(damaged_bytes(data.draw, path.read_bytes()))
    try:
        for tensor_name, tensor in read_tensors(copy):
            assert isinstance(tensor_name, str) and tensor.shape is not None
        if copy.suffix == ".pt":
            read_torch(copy)
    except WeightsError as error:
        assert "weights_only" not in str(error)


# -- requests --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The server's application, without a socket."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dam")
    write_checkpoint(folder)
    limits = RequestLimits(body_bytes=1 << 17, image_pixels=10_000, max_new_tokens=1)
    settings = ServerSettings("tiny", sampling=GREEDY, limits=limits, token="secret")
    app = create_app(DAM.from_pretrained(folder), settings)
    with TestClient(app, raise_server_exceptions=True) as client:
        yield client


def request() -> dict[str, Any]:
    messages = [{"role": "system", "content": "x"}, *question(png(rgba(size=16)))]
    return {
        **{"model": "tiny", "messages": messages},
        **{"max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 1},
        **{"stop": ["a"], "stream": False, "logprobs": True, "n": 1},
        "stream_options": {"include_usage": True},
    }


@fuzz
@given(st.data())
def test_requests(server: TestClient, data: Any) -> None:
    body = json.dumps(damaged(data.draw, request())).encode()
    if data.draw(st.integers(0, 3)) == 0:
        body = damaged_bytes(data.draw, body)
    kinds = ["application/json"] * 8 + ["text/plain", ""]
    tokens = ["Bearer secret"] * 6 + ["secret", "BEARER  secret", "bearer", "Basic x"]
    path = data.draw(st.sampled_from(["/v1/chat/completions", "/chat/completions"]))
    headers = {
        "content-type": data.draw(st.sampled_from(kinds)),
        "authorization": data.draw(st.sampled_from(tokens)),
    }
    answer: httpx.Response = server.post(path, content=body, headers=headers)
    if path.startswith("/v1"):
        assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert answer.json().keys() & {"error", "detail"}
    assert "Traceback" not in answer.text and "Error:" not in answer.text
