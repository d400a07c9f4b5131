from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.sam2.configuration import Sam2Options
from fiftyone_regioncap.propagation.sam2.propagator import (
    EdgeTamPropagator,
    Sam2Propagator,
    Sam3TrackerPropagator,
)

PROPAGATORS = {
    "sam2": Sam2Propagator,
    "edgetam": EdgeTamPropagator,
    "sam3-tracker": Sam3TrackerPropagator,
}


@pytest.fixture(params=PROPAGATORS)
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path, make_model):
    make_model().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def logits(propagator, clip):
    prompts = [Prompt(1, 0, box=(10, 10, 80, 60))]
    return torch.cat(
        [found.logits for found in propagator.logits(PropagationRequest(clip, prompts))]
    )


def test_a_saved_model_gives_the_same(kind, tmp_path, make_model, make_clip):
    model, clip = make_model(kind), make_clip(3)
    model.save_pretrained(tmp_path)
    loaded = PROPAGATORS[kind].from_pretrained(str(tmp_path), device="cpu")
    expected = logits(PROPAGATORS[kind](model, device="cpu"), clip)
    assert (logits(loaded, clip) - expected).abs().max() < 1e-4
    assert loaded.info.name == kind
    assert loaded.info.model == tmp_path.name
    assert len(loaded.info.revision) == 64


def test_half_precision_weights_are_taken(folder, make_model, make_clip):
    path = folder / "model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(half, path, metadata={"format": "pt"})
    loaded = Sam2Propagator.from_pretrained(str(folder), device="cpu")
    assert torch.isfinite(logits(loaded, make_clip(2))).all()


def test_the_image_models_configuration_is_taken(folder, make_clip):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    expected = logits(
        Sam2Propagator.from_pretrained(str(folder), device="cpu"), make_clip(2)
    )
    config["model_type"] = "sam2"
    config["prompt_encoder_config"]["model_type"] = "sam2_prompt_encoder"
    config["mask_decoder_config"]["model_type"] = "sam2_mask_decoder"
    path.write_text(json.dumps(config))
    loaded = Sam2Propagator.from_pretrained(str(folder), device="cpu")
    assert (logits(loaded, make_clip(2)) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("size", [64, 192, 256])
def test_other_image_sizes(size, folder, make_clip):
    loaded = Sam2Propagator.from_pretrained(
        str(folder), device="cpu", options=Sam2Options(image_size=size)
    )
    assert logits(loaded, make_clip(3)).shape == (3, size // 4, size // 4)


def test_an_image_size_that_does_not_fit(folder):
    with pytest.raises(WeightsError, match="multiple of 32"):
        Sam2Propagator.from_pretrained(str(folder), options=Sam2Options(image_size=500))


def test_weights_of_another_architecture(kind, tmp_path, make_model):
    make_model(kind).save_pretrained(tmp_path)
    for other in PROPAGATORS.keys() - {kind}:
        with pytest.raises(WeightsError, match="choose the backend that fits"):
            PROPAGATORS[other].from_pretrained(str(tmp_path), device="cpu")


def drop(state):
    del state["memory_encoder.projection.weight"]


def add(state):
    state["head.weight"] = torch.zeros(2)


def reshape(state):
    state["mask_downsample.bias"] = torch.zeros(3)


def empty(state):
    state["mask_downsample.bias"].fill_(float("nan"))


def keep_the_image_model_only(state):
    for name in list(state):
        if name.startswith(("memory_", "object_pointer", "no_object", "mask_down")):
            del state[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "missing: memory_encoder.projection.weight"),
        (add, "unexpected: head.weight"),
        (reshape, "another shape: mask_downsample.bias"),
        (empty, "nothing but NaN: mask_downsample.bias"),
        (keep_the_image_model_only, "missing: .* and [0-9]+ more"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=message):
        Sam2Propagator.from_pretrained(str(folder), device="cpu")


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def forget_weights(folder):
    (folder / "model.safetensors").unlink()


def forget_config(folder):
    (folder / "config.json").unlink()


def break_config(folder):
    (folder / "config.json").write_text("{")


def misconfigure(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_maskmem"] = "seven"
    (folder / "config.json").write_text(json.dumps(config))


def configure(**changes):
    """Changes values of a configuration, in parts of it by ``part__name``."""

    def change(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for key, value in changes.items():
            *parts, name = key.split("__")
            place = config
            for part in parts:
                place = place[part]
            place[name] = value
        path.write_text(json.dumps(config))

    return change


def make_a_list(folder):
    (folder / "config.json").write_text("[]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_a_list, "config.json holds no JSON object"),
        (configure(mask_decoder_config__num_attention_heads=0), "num_attention_heads"),
        (configure(image_size=-1), "image_size is -1"),
        (configure(mask_decoder_config__num_hidden_layers=10**7), "1 to 1000"),
        (configure(memory_attention_num_layers=10**7), "1 to 1000"),
        (
            configure(vision_config__backbone_config__blocks_per_stage=[1, 10**7]),
            "blocks_per_stage: num_layers is 10000000",
        ),
        (configure(vision_config=[]), "no use"),
        (cut, "cannot be read"),
        (forget_weights, "cannot be read"),
        (forget_config, "config.json is missing; give a folder"),
        (break_config, "cannot be read as JSON"),
        (misconfigure, "config.json has values of no use"),
    ],
)
def test_broken_folders(folder, change, message):
    change(folder)
    with pytest.raises(WeightsError, match=message):
        Sam2Propagator.from_pretrained(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/no-such-model", "without network"),
        ("no folder/at all/here", "is no folder and no hub repository"),
    ],
)
def test_no_weights(name, message, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=message):
        Sam2Propagator.from_pretrained(name)
