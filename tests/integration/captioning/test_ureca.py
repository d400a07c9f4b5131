"""URECA: loading, batches, and input that is no good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from fiftyone_regioncap.captioning.ureca.captioner import UrecaCaptioner
from fiftyone_regioncap.captioning.ureca.config import UrecaConfig
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.captioning.ureca.generation import (
    RegionPrompt,
    attend,
    read_prefix,
)
from fiftyone_regioncap.captioning.ureca.tiling import mask_tiles, tile_grid
from fiftyone_regioncap.captioning.ureca.tokenizer import UrecaTokenizer
from fiftyone_regioncap.captioning.ureca.weights import merge_lora, split_wqkv
from fiftyone_regioncap.core.errors import OptionError, PromptError, WeightsError
from fiftyone_regioncap.core.types import RegionClip
from tests.support.ureca import SIZES, ByteVocabulary, config_of, random_captioner

HEIGHT, WIDTH = 90, 140


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def config() -> UrecaConfig:
    return config_of(SIZES["tiny"], mask_channels=3, tile=56)


@pytest.fixture(scope="module")
def captioner(config: UrecaConfig) -> UrecaCaptioner:
    return random_captioner(config, options=UrecaOptions(max_new_tokens=6))


def frame(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def clip(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> RegionClip:
    return RegionClip(frames=[picture], masks=[mask])


def regions(count: int, picture: NDArray[np.uint8]) -> list[RegionClip]:
    return [clip(picture, disc(10 + 11 * n, 15 + 5 * n, 6 + n)) for n in range(count)]


def test_regions_of_several_frames_say_what_they_say_alone(
    config: UrecaConfig,
) -> None:
    every = [*regions(4, frame(0)), *regions(3, frame(1)), *regions(2, frame(2))]
    every = [every[n] for n in (0, 4, 8, 1, 5, 7, 2, 3, 6)]
    texts = []
    for at_once in (1, 4, 16):
        options = UrecaOptions(max_new_tokens=12, regions_at_once=at_once)
        captions = random_captioner(config, options=options).caption(every)
        assert not any(caption.error for caption in captions)
        texts.append([(caption.text, caption.tokens) for caption in captions])
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 1


def test_a_drawn_caption_does_not_depend_on_its_batch(config: UrecaConfig) -> None:
    every = regions(4, frame(0))
    drawn = UrecaOptions(max_new_tokens=12, temperature=1.0, seed=3)
    together = random_captioner(config, options=drawn).caption(every)
    apart = [random_captioner(config, options=drawn).caption([one])[0] for one in every]
    assert [one.text for one in together] == [one.text for one in apart]


def test_a_frame_is_encoded_once_for_all_its_regions(
    config: UrecaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = random_captioner(config, options=UrecaOptions(max_new_tokens=2))
    encode, seen = captioner.model.image_tokens, []

    def counted(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(len(tiles))
        return encode(tiles)

    monkeypatch.setattr(captioner.model, "image_tokens", counted)
    first, second = frame(0), frame(1)
    mixed = [
        one
        for pair in zip(regions(3, first), regions(3, second), strict=True)
        for one in pair
    ]
    captioner.caption(mixed)
    assert len(seen) == 2
    captioner.caption(regions(2, first))
    assert len(seen) == 2, "kept for later calls"
    captioner.caption(regions(1, first.copy()))
    assert len(seen) == 3


def test_answers_end_with_the_end_token(captioner: UrecaCaptioner) -> None:
    one = regions(1, frame(0))[0]
    image = captioner.model.image_tokens(
        torch.from_numpy(captioner.tiles(one.frames[0]))
    )
    masks = torch.from_numpy(captioner.mask_tiles(one.masks[0]))
    shared, own = captioner.prompt_ids("<image>\n<mask>\nWhat?", len(image), len(masks))
    region = RegionPrompt(
        read_prefix(captioner.model.llm, captioner.embed(shared, image=image)),
        captioner.embed(own, mask=captioner.model.mask_tokens(masks)),
    )
    (free,) = captioner.answer([region])
    assert len(free.ids) == captioner.options.max_new_tokens and not free.ended
    special = {**captioner.tokenizer.special, "<|im_end|>": free.ids[2]}
    tokenizer = UrecaTokenizer(ByteVocabulary(), special)
    ending = UrecaCaptioner(captioner.model, tokenizer, options=captioner.options)
    (ended,) = ending.answer([region])
    assert ended.ended
    assert ended.ids == free.ids[: free.ids.index(free.ids[2]) + 1]
    assert ended.probabilities == pytest.approx(free.probabilities[: len(ended.ids)])


@pytest.mark.parametrize("size", ["tiny", "internlm2"])
@torch.inference_mode()
def test_ids_are_those_of_transformers(config: UrecaConfig, size: str) -> None:
    if size == "internlm2":
        uneven = replace(SIZES["tiny"], family=size, heads=6, hidden=48)
        config = config_of(uneven, mask_channels=2, tile=56)
    captioner = random_captioner(config, options=UrecaOptions(max_new_tokens=8))
    llm = captioner.model.llm
    shared, *rests = (torch.randn(n, llm.config.hidden_size) for n in (40, 9, 5, 9))
    prefix = read_prefix(llm, shared)
    ours = captioner.answer([RegionPrompt(prefix, rest) for rest in rests])
    for rest, answer in zip(rests, ours, strict=True):
        whole = torch.cat([shared, rest])
        for token, chance in zip(answer.ids, answer.probabilities, strict=True):
            logits = llm(inputs_embeds=whole[None]).logits[0, -1]
            assert int(logits.argmax()) == token
            assert float(logits.softmax(-1).max()) == pytest.approx(chance, rel=1e-3)
            new = llm.model.embed_tokens(torch.tensor([token]))
            whole = torch.cat([whole, new])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(config: UrecaConfig, dtype: torch.dtype) -> None:
    captioner = random_captioner(
        config, options=UrecaOptions(max_new_tokens=4), dtype=dtype
    )
    captions = captioner.caption(regions(3, frame(0)))
    assert all(caption.text and not caption.error for caption in captions)


def test_the_frame_that_shows_the_object_best(captioner: UrecaCaptioner) -> None:
    mask, speck = disc(60, 40, 25), disc(60, 40, 3)
    gray = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    pictures = [gray, frame(5), frame(6)]
    several = RegionClip(
        frames=pictures, masks=[mask, mask, speck], frame_indices=(0, 5, 9)
    )
    (expected,) = captioner.caption([clip(pictures[1], mask)])
    assert captioner.caption([several])[0] == expected


NOTHING = np.zeros((HEIGHT, WIDTH), dtype=bool)


def pixel() -> NDArray[np.bool_]:
    mask = NOTHING.copy()
    mask[40, 50] = True
    return mask


def far_pixels() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Two pixels that nearest-neighbor sampling steps over."""
    mask = np.zeros((600, 600), dtype=bool)
    mask[3, 3:5] = True
    return np.zeros((600, 600, 3), dtype=np.uint8), mask


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        pytest.param(clip(frame(0), NOTHING), "empty", id="empty mask"),
        pytest.param(clip(frame(0), pixel()), "single pixel", id="one pixel"),
        pytest.param(clip(*far_pixels()), "so small", id="lost by resizing"),
        pytest.param(clip(frame(0), NOTHING[:-1]), "size", id="other size"),
        pytest.param(RegionClip(frames=[], masks=[]), "0 frames", id="no frames"),
        pytest.param(
            RegionClip(frames=[frame(0)] * 2, masks=[pixel()]), "1 masks", id="uneven"
        ),
        pytest.param(
            clip(frame(0).astype(np.float32), disc(9, 9, 5)), "uint8", id="floats"
        ),
    ],
)
def test_bad_clips_leave_the_others_alone(
    captioner: UrecaCaptioner, bad: RegionClip, says: str
) -> None:
    good = regions(2, frame(0))
    first, wrong, last = captioner.caption([good[0], bad, good[1]])
    assert wrong.error is not None and says in wrong.error
    assert not wrong.text
    assert [first, last] == captioner.caption(good)


def test_more_tiles_than_the_model_can_read(config: UrecaConfig) -> None:
    config.llm.max_position_embeddings = 260
    try:
        captioner = random_captioner(config, options=UrecaOptions(max_new_tokens=8))
        (caption,) = captioner.caption(regions(1, frame(0)))
        assert caption.error is not None and "max_tiles" in caption.error
        captioner = random_captioner(
            config, options=UrecaOptions(max_new_tokens=8, max_tiles=1)
        )
        assert captioner.caption(regions(1, frame(0)))[0].error is None
    finally:
        config.llm.max_position_embeddings = 32768


@pytest.mark.parametrize(
    "prompt", ["What is it? <IMG_CONTEXT>", "a<|im_end|>b", "<MASK_CONTEXT>"]
)
def test_prompts_that_would_break_the_layout(
    captioner: UrecaCaptioner, prompt: str
) -> None:
    with pytest.raises(PromptError, match="leave it out"):
        captioner.caption(regions(1, frame(0)), prompt=prompt)


@pytest.mark.parametrize(
    "prompt",
    ["short", "Is it red?", "<image>\n<mask>\nIs <mask> red?", "<image> What?"],
)
def test_prompts_of_any_form(captioner: UrecaCaptioner, prompt: str) -> None:
    assert captioner.caption(regions(1, frame(0)), prompt=prompt)[0].error is None


@pytest.mark.parametrize("name", ["max_tiles", "max_new_tokens", "regions_at_once"])
def test_settings_that_are_not_possible(captioner: UrecaCaptioner, name: str) -> None:
    with pytest.raises(OptionError, match=name):
        UrecaCaptioner(
            captioner.model,
            captioner.tokenizer,
            options=replace(captioner.options, **{name: 0}),
        )


def test_no_clips(captioner: UrecaCaptioner) -> None:
    assert captioner.caption([]) == []


# Parts.


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_attention_in_two_parts_is_attention(
    batch: int, heads: int, shared: int, new: int
) -> None:
    torch.manual_seed(0)
    group, width, own = 2, 4, new + 2
    query = torch.randn(batch, heads * group, new, width)
    before = torch.randn(2, heads, shared, width)
    after = torch.randn(2, batch, heads, own, width)
    visible = torch.arange(own) <= torch.arange(new)[:, None] + 1
    ours = attend(
        query,
        (before[0], before[1]),
        (after[0], after[1]),
        visible.expand(batch, -1, -1),
    )
    joined = [
        torch.cat([b.expand(batch, -1, -1, -1), a], dim=2)
        for b, a in zip(before, after, strict=True)
    ]
    mask = torch.cat([torch.ones(new, shared, dtype=torch.bool), visible], dim=1)
    whole = torch.nn.functional.scaled_dot_product_attention(
        query, *joined, attn_mask=mask, enable_gqa=True
    )
    torch.testing.assert_close(ours, whole.transpose(1, 2).flatten(2))


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 12))
def test_grids_are_never_larger_than_asked(width: int, height: int, most: int) -> None:
    columns, rows = tile_grid(width, height, most, 448)
    assert 1 <= columns * rows <= most
    assert tile_grid(height, width, 1, 448) == (1, 1)


def test_overshoot_wraps_around() -> None:
    mask = np.zeros((480, 640), dtype=bool)
    rows, columns = np.ogrid[:480, :640]
    mask[(columns - 300) ** 2 + (rows - 200) ** 2 < 90**2] = True
    tiles = mask_tiles(mask, max_tiles=12, tile=448)
    assert tiles[-1].sum() == 4_241_580
    assert tiles[:-1].sum() == 50_832_975
    assert len(np.unique(tiles[-1])) == 213


def test_mask_encoder_of_the_written_out_vector() -> None:
    def wave(shape: Sequence[int], scale: float, a: float, b: float) -> torch.Tensor:
        steps = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        return (scale * torch.sin(a * steps + b)).reshape(tuple(shape))

    config = config_of(SIZES["tiny"])
    config.llm.hidden_size = 16
    model = random_captioner(config).model.double()
    first, second, linear = (
        model.mask_encoder[0],
        model.mask_encoder[2],
        model.mask_linear,
    )
    for layer, weight, bias in (
        (first, (0.7, 0.1, 0.2), (0.9, 0.2, 0.05)),
        (second, (0.3, 0.4, 0.2), (0.5, 0.6, 0.05)),
        (linear, (0.013, 0.8, 0.01), (0.21, 1, 0.1)),
    ):
        for name, (a, b, s) in (("weight", weight), ("bias", bias)):
            values = getattr(layer, name)
            values.copy_(wave(values.shape, s, a, b))
    rows, columns = np.ogrid[:448, :448]
    mask = (columns - 224) ** 2 + (rows - 200) ** 2 < 90**2
    for value, conv, total, size, some in (
        (255, 14072.713832, -40.593144, 225.426219, (-2.5974, -1.22689, 4.57609)),
        (1, 2576.400729, 4.140567, 7.825560, (0.06833, 0.06766, -0.06983)),
    ):
        tile = torch.from_numpy(np.where(mask, value, 0).astype(np.uint8))[None]
        assert model.mask_maps(tile).sum().item() == pytest.approx(conv, abs=1e-5)
        tokens = model.mask_tokens(tile)[0]
        assert tokens.sum().item() == pytest.approx(total, abs=1e-5)
        assert tokens.abs().sum().item() == pytest.approx(size, abs=1e-5)
        places = (tokens[0, 0].item(), tokens[3, 7].item(), tokens[7, 15].item())
        assert places == pytest.approx(some, abs=1e-5)


def test_fused_projections_come_apart() -> None:
    config = config_of(SIZES["tiny"])  # 2 heads of keys, each for 2 of queries
    fused = torch.arange(2 * 4 * 16).float()
    query, key, value = split_wqkv(fused, config)
    assert query[:64:16].tolist() == [0, 16, 64, 80]
    assert key[:32:16].tolist() == [32, 96]
    assert value[:32:16].tolist() == [48, 112]
    with pytest.raises(WeightsError, match="two checkpoints"):
        split_wqkv(fused[:-1], config)


def test_lora_is_merged() -> None:
    base, a, b = torch.randn(6, 4), torch.randn(2, 4), torch.randn(6, 2)
    stem = "language_model.base_model.model.model.layers.0.self_attn.q_proj"
    named = [
        (f"{stem}.lora_A.default.weight", a),
        (f"{stem}.base_layer.weight", base),
        ("other", base),
        (f"{stem}.lora_B.default.weight", b),
    ]
    merged = dict(merge_lora(named, 2.0))
    assert set(merged) == {f"{stem}.weight", "other"}
    torch.testing.assert_close(merged[f"{stem}.weight"], base + 2 * b @ a)
    with pytest.raises(WeightsError, match="lack a part"):
        dict(merge_lora(named[:2], 2.0))


# Folders.


@pytest.fixture
def checkpoint(golden: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a checkpoint and its tokenizer into one folder, as a release has them."""

    def copy(family: str) -> Path:
        source = golden / "ureca"
        if not (source / f"model_{family}").is_dir():
            pytest.skip(f"no folder {source}/model_{family}")
        target = tmp_path / family
        target.mkdir()
        for folder in (f"model_{family}", f"tokenizer_{family}"):
            for path in (source / folder).iterdir():
                shutil.copyfile(path, target / path.name)
        shutil.copyfile(
            source / "added_tokens_order.json", target / "added_tokens_order.json"
        )
        return target

    return copy


def load(folder: Path, **options: Any) -> UrecaCaptioner:
    return UrecaCaptioner.from_pretrained(
        folder, device="cpu", options=UrecaOptions(**options)
    )


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reweigh(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    path = folder / "model.safetensors"
    state = change(load_file(path))
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


@pytest.mark.parametrize("family", ["internlm2", "qwen2"])
def test_a_release_in_one_folder(
    checkpoint: Callable[[str], Path], family: str
) -> None:
    folder = checkpoint(family)
    captioner = load(folder, max_new_tokens=4)
    info = captioner.info
    assert (info.name, info.model) == ("ureca", family)
    assert len(info.revision) == 64
    assert info.tasks == {"caption"}
    expected = captioner.caption(regions(2, frame(0)))
    llm = captioner.model.llm
    assert llm.lm_head.weight.data_ptr() != llm.model.embed_tokens.weight.data_ptr()

    # Added tokens as transformers saves them; N read off the weights; LoRA unmerged.
    (folder / "added_tokens_order.json").unlink()
    special = captioner.tokenizer.special
    (folder / "added_tokens.json").write_text(json.dumps(special))
    rewrite(folder, lambda content: content.pop("num_mask_token"))

    def unmerged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        fused = "wqkv" if family == "internlm2" else "k_proj"
        made = {}
        for name, tensor in state.items():
            name = name.replace(
                "language_model.", "language_model.base_model.model.", 1
            )
            if f".{fused}." not in name:
                made[name] = tensor
                continue
            made[name.replace(f".{fused}.", f".{fused}.base_layer.")] = tensor
            if name.endswith(".weight"):
                stem = name.removesuffix(".weight")
                made[f"{stem}.lora_A.default.weight"] = torch.randn(2, tensor.shape[1])
                made[f"{stem}.lora_B.default.weight"] = torch.zeros(len(tensor), 2)
        return made

    reweigh(folder, unmerged)
    assert load(folder, max_new_tokens=4).caption(regions(2, frame(0))) == expected


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def configured(*path: str, value: Any) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return lambda folder: rewrite(folder, change)


def plain_internvl(folder: Path) -> None:
    rewrite(folder, lambda content: content.pop("num_mask_token"))
    reweigh(folder, lambda s: {k: v for k, v in s.items() if "mask" not in k})


def one_less(folder: Path) -> None:
    reweigh(folder, lambda s: {k: v for k, v in s.items() if k != "mask_linear.bias"})


def one_more(folder: Path) -> None:
    reweigh(folder, lambda state: {**state, "extra.weight": torch.zeros(1)})


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def untold(folder: Path) -> None:
    (folder / "added_tokens_order.json").write_text('["<img>", "</img>"]')


BAD_FOLDERS = {
    "no config": (without("config.json"), "not been reachable"),
    "no weights": (without("model.safetensors"), "model.safetensors missing"),
    "weights cut off": (cut_off, "no whole safetensors"),
    "no tokenizer": (without("vocab.json"), "has no tokenizer"),
    "no added tokens": (without("added_tokens_order.json"), "<MASK_CONTEXT>"),
    "too few added tokens": (untold, "<mask>"),
    "config is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "cannot be read as JSON",
    ),
    "config of something else": (
        lambda folder: (folder / "config.json").write_text("{}"),
        "no InternVL checkpoint",
    ),
    "another language model": (
        configured("llm_config", "architectures", value=["MistralForCausalLM"]),
        "Mistral",
    ),
    "no heads": (
        lambda folder: rewrite(
            folder, lambda c: c["llm_config"].pop("num_attention_heads")
        ),
        "num_attention_heads",
    ),
    "another projector": (configured("ps_version", value="v1"), "ps_version"),
    "another tile": (configured("force_image_size", value=224), "force_image_size"),
    "other mask tokens": (
        configured("num_mask_token", value=9),
        "of another shape: mask_encoder",
    ),
    "plain InternVL": (plain_internvl, "mask encoder"),
    "a tensor is missing": (one_less, "missing: mask_linear.bias"),
    "a tensor is left over": (one_more, "unexpected: extra.weight"),
    "small vocabulary": (
        configured("llm_config", "vocab_size", value=100),
        "two checkpoints",
    ),
}


@pytest.mark.parametrize(
    ("spoil", "says"), BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys()
)
def test_folders_that_are_no_checkpoint(
    checkpoint: Callable[[str], Path], spoil: Callable[[Path], Any], says: str
) -> None:
    folder = checkpoint("qwen2")
    spoil(folder)
    with pytest.raises(WeightsError, match=says):
        load(folder)


@pytest.mark.parametrize(
    ("family", "other"), [("internlm2", "qwen2"), ("qwen2", "internlm2")]
)
def test_a_checkpoint_of_the_other_language_model(
    checkpoint: Callable[[str], Path], family: str, other: str
) -> None:
    ours, theirs = checkpoint(family), checkpoint(other)
    shutil.copyfile(theirs / "model.safetensors", ours / "model.safetensors")
    with pytest.raises(WeightsError, match=f"weights are of {other}"):
        load(ours)
    for name in ("tokenizer.model", "vocab.json", "merges.txt"):
        (ours / name).unlink(missing_ok=True)
        if (theirs / name).exists():
            shutil.copyfile(theirs / name, ours / name)
    with pytest.raises(WeightsError, match=f"tokenizer of {other}"):
        load(ours)


def test_weights_that_are_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in (tmp_path / "nothing", "SammyLim/URECA"):
        with pytest.raises(WeightsError, match="not been reachable"):
            UrecaCaptioner.from_pretrained(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"dtype": "int8"}, "dtype", id="dtype"),
        pytest.param({"temperature": -1.0}, "temperature", id="temperature"),
        pytest.param({"max_tiles": 0}, "max_tiles", id="no tiles"),
    ],
)
def test_options_that_are_not_possible(
    checkpoint: Callable[[str], Path], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptionError, match=says):
        load(checkpoint("qwen2"), **options)
