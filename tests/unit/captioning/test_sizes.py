"""Published sizes of captioners to the byte, and rows as they are allocated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Dinov2WithRegistersModel, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.dynrefer import small
from fiftyone_regioncap.captioning.dam import sizes as dam_sizes
from fiftyone_regioncap.captioning.dam.configuration import (
    DamOptions,
    DamTrainingOptions,
)
from fiftyone_regioncap.captioning.dam.language import Cache, row_bytes
from fiftyone_regioncap.captioning.dam.sizes import DAM_3B, empty_dam, language_bytes
from fiftyone_regioncap.captioning.dam.training import DamTraining
from fiftyone_regioncap.captioning.dynrefer import sizes as dynrefer_sizes
from fiftyone_regioncap.captioning.dynrefer.configuration import (
    DynReferOptions,
    DynReferTrainingOptions,
)
from fiftyone_regioncap.captioning.dynrefer.model import Decoding, DynReferModel
from fiftyone_regioncap.captioning.dynrefer.training import DynReferTraining
from fiftyone_regioncap.captioning.patchioner import sizes as patchioner_sizes
from fiftyone_regioncap.captioning.patchioner.configuration import (
    PatchionerOptions,
    PatchionerTrainingOptions,
)
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.training import PatchionerTraining
from fiftyone_regioncap.captioning.trainable import Recipe, trained
from fiftyone_regioncap.captioning.ureca import sizes as ureca_sizes
from fiftyone_regioncap.captioning.ureca.configuration import (
    UrecaOptions,
    UrecaTrainingOptions,
)
from fiftyone_regioncap.captioning.ureca.model import UrecaModel
from fiftyone_regioncap.captioning.ureca.training import UrecaTraining
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.models.planning import metered, parameters_of
from tests.support.dam import TINY, random_dam, write_checkpoint

HALF = torch.bfloat16


def llama(
    vocabulary: int,
    width: int,
    inner: int,
    layers: int,
    shared: int,
    biased: bool = False,
) -> int:
    """Counts a Llama's or Qwen2's parameters; ``shared`` is the width of its keys."""
    attention = 2 * width * width + 2 * width * shared
    attention += (width + 2 * shared) * biased
    block = attention + 3 * width * inner + 2 * width
    return 2 * vocabulary * width + layers * block + width


def test_dam_has_the_parameters_of_the_published_checkpoint() -> None:
    dam = empty_dam(DAM_3B, HALF)
    width, inner, patches = 1152, 4304, 27 * 27
    attention = 4 * (width * width + width)
    mlp = 2 * width * inner + inner + width
    block = attention + mlp + 4 * width
    embeddings = 4 * 14 * 14 * width + 2 * width + patches * width
    assert parameters_of(dam.encoder.tower) == embeddings + 26 * block
    assert parameters_of(dam.encoder.adapters) == 26 * (block + 2)
    assert parameters_of(dam.llm) == llama(32000, 2560, 6912, 32, 2560) == 2701560320
    assert parameters_of(dam.projector) == 18364416
    made = dam_sizes.footprint(None, DamOptions(), HALF)
    assert (made.parameters, made.weights) == (3514124276, 2 * 3514124276)


def test_quantized_layers_take_fewer_bytes() -> None:
    llm = empty_dam(DAM_3B, HALF).llm
    layers = 32 * (4 * 2560 * 2560 + 3 * 2560 * 6912)
    rest = 2 * 2701560320 - 2 * layers
    assert language_bytes(llm, "8bit") == rest + layers
    assert language_bytes(llm, "4bit") == rest + layers // 2


@pytest.mark.parametrize(
    ("size", "language", "mask"),
    [
        ("1b", llama(151677, 896, 4864, 24, 128, biased=True), 11240984),
        ("2b", llama(92556, 2048, 8192, 24, 1024), 25692824),
        ("4b", llama(151677, 2048, 11008, 36, 256, biased=True), 25692824),
        ("8b", llama(92556, 4096, 14336, 32, 1024), 51384984),
    ],
)
def test_ureca_has_the_parameters_of_its_sizes(
    size: str, language: int, mask: int
) -> None:
    config = ureca_sizes.config_of(ureca_sizes.PUBLISHED[size])
    with torch.device("meta"):
        model = UrecaModel(config)
    assert parameters_of(model.llm) == language
    assert parameters_of(model.mask_encoder, model.mask_linear) == mask


def test_dynrefer_has_the_parameters_of_flan_t5_xl_and_eva_clip() -> None:
    config = dynrefer_sizes.published()
    with torch.device("meta"):
        model = DynReferModel(config)
    assert parameters_of(model.language) == 2849757184
    made = dynrefer_sizes.footprint(None, DynReferOptions(), HALF)
    assert made.weights == 4 * made.parameters - 2 * 2849757184  # the T5 alone is half


def test_patchioner_has_the_parameters_of_dinov2_and_decap() -> None:
    config = patchioner_sizes.published()
    with torch.device("meta"):
        tower, decoder = Dinov2WithRegistersModel(config), PrefixDecoder(768)
    assert parameters_of(decoder) == 68327424
    block = 12 * 768 * 768 + 13 * 768 + 2 * 768  # with two scales
    embeddings = 768 * (3 * 14 * 14 + 1) + 768 * (1 + 4 + 37 * 37 + 1 + 1)
    assert parameters_of(tower) == pytest.approx(12 * block + embeddings, rel=1e-3)
    made = patchioner_sizes.footprint(None, PatchionerOptions(), torch.float32)
    assert made.weights == 4 * (made.parameters + 591753 * 768)


# Rows, beside what is allocated.


@pytest.mark.parametrize("length", [1, 256, 257, 700])
def test_a_row_of_dam_is_its_cache(length: int) -> None:
    cache = Cache(TINY.llm, 3, length, torch.device("cpu"), HALF)
    held = (
        cache.keys.untyped_storage().nbytes() + cache.values.untyped_storage().nbytes()
    )
    assert 3 * row_bytes(TINY.llm, length, HALF) == held


def test_the_beams_of_dynrefer_are_their_cache() -> None:
    config, decoding = small(), Decoding(num_beams=3, max_new_tokens=7)
    language = T5ForConditionalGeneration(config.language)
    prompt = config.queries + dynrefer_sizes.CONTROLS
    encoded = torch.zeros(3, prompt, config.language.d_model)
    found = language(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        decoder_input_ids=torch.zeros(3, 7, dtype=torch.int64),
        use_cache=True,
    ).past_key_values
    held = sum(
        tensor.numel() * tensor.element_size()
        for cache in (found.self_attention_cache, found.cross_attention_cache)
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )
    assert dynrefer_sizes.cache_bytes(config, decoding, torch.float32) == held


def test_the_region_of_ureca_is_its_cache() -> None:
    config = ureca_sizes.config_of(ureca_sizes.Size("qwen2", 64, 128, 2, 4, 2), 300, 3)
    options = UrecaOptions(max_tiles=2, max_new_tokens=9)
    longest = ureca_sizes.own_tokens(config, options) + 9
    cache = Cache(config.llm, 1, longest, torch.device("cpu"), HALF)
    held = (
        cache.keys.untyped_storage().nbytes() + cache.values.untyped_storage().nbytes()
    )
    assert ureca_sizes.region_bytes(config, options, HALF) == held


# What is computed, beside what is allocated.


def test_encoding_on_the_meta_device_takes_what_the_cpu_allocates(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path)
    tokenizer: Any = None
    peaks = []
    for dam in (empty_dam(TINY, torch.float32), random_dam(TINY, tokenizer)):
        views = torch.zeros(2, 8, 112, 112, dtype=torch.uint8, device=dam.device)
        with torch.inference_mode(), metered() as meter:
            dam.encode(views, torch.ones(2, dtype=torch.bool))
        peaks.append(meter.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)
    made = dam_sizes.footprint(str(tmp_path), DamOptions(), torch.float32)
    assert made.phases(2)[0].memory == pytest.approx(peaks[0], rel=0.02)


def test_rows_scale_what_is_computed() -> None:
    made = dam_sizes.footprint(None, DamOptions(), HALF)
    one, eight = made.phases(1), made.phases(8)
    assert [b.flops / a.flops for a, b in zip(one, eight, strict=True)] == [8, 8, 8]
    assert eight[0].memory == 8 * one[0].memory  # one image each, and eight go together


def test_a_training_step_on_the_meta_device_takes_what_the_cpu_allocates() -> None:
    peaks = []
    for device in ("meta", "cpu"):
        tokenizer: Any = None
        dam = random_dam(TINY, tokenizer) if device == "cpu" else None
        captioner: Any = SimpleNamespace(dam=dam or empty_dam(TINY, torch.float32))
        recipe = DamTraining(captioner, Path(), DamTrainingOptions(stage="adapters"))
        tokens = TINY.tokens_per_image
        sample = {
            "views": torch.zeros(1, 8, 112, 112, dtype=torch.uint8, device=device),
            "distinct": torch.ones(1, dtype=torch.bool),
            "ids": [1] * 9 + [-200] + [2] * 5,
            "labels": [-100] * (9 + tokens) + [2] * 5,
        }
        with metered() as meter:
            recipe.network(**recipe.collate([sample]))["loss"].backward()
        peaks.append(meter.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05)


@pytest.mark.parametrize(
    ("recipe", "options", "trains"),
    [
        # Adapters, the projector and LoRA; the last, of one rank, on all linear layers.
        (DamTraining, DamTrainingOptions(), 439853268),
        (UrecaTraining, UrecaTrainingOptions(), 32 * 128 * 73728),
        (UrecaTraining, UrecaTrainingOptions(stage="masks"), 51384984),
        (DynReferTraining, DynReferTrainingOptions(), 122877684),
        (PatchionerTraining, PatchionerTrainingOptions(), 68327424),
    ],
    ids=["dam", "ureca", "ureca, masks", "dynrefer", "patchioner"],
)
def test_what_trains_is_known_without_weights(
    recipe: type[Recipe], options: Any, trains: int
) -> None:
    network, batch = recipe.without_weights(None, HALF, options)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert sum(one.numel() for one in trained(network).values()) == trains
    with metered() as meter:
        network.train()(**batch)["loss"].backward()
    assert meter.flops > trains


def test_a_recipe_that_does_not_know_its_sizes_says_so() -> None:
    with pytest.raises(BackendError, match="Recipe: what its training needs can't be"):
        Recipe.without_weights(None, HALF, None)
