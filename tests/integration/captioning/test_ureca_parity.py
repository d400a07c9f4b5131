"""URECA against the numbers of the reference, whatever their sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.captioning.ureca.captioner import UrecaCaptioner
from fiftyone_regioncap.captioning.ureca.generation import RegionPrompt, read_prefix
from fiftyone_regioncap.captioning.ureca.prompts import conversation
from fiftyone_regioncap.captioning.ureca.tiling import (
    image_tiles,
    mask_tiles,
    normalize,
    static_mask,
    tile_grid,
)

PIXELS = 1e-6
TOKENS = 1e-4  # relative to the largest
EMBEDDINGS = 1e-4
LOGITS = 2e-3
BFLOAT16 = 3e-2  # relative to the largest


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    path = golden / "ureca"
    if not path.is_dir():
        pytest.skip(f"no folder {path}")
    torch.set_num_threads(1)
    return path


@pytest.fixture(scope="module")
def tiles(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tiles.json").read_text())


@pytest.fixture(scope="module")
def tile(tiles: dict[str, Any]) -> int:
    return tiles["images"][0]["pixel_values_shape"][-1]


@pytest.fixture(scope="module")
def arrays(folder: Path) -> dict[str, NDArray[Any]]:
    with np.load(folder / "tiles.npz") as file:
        return {key: file[key] for key in file}


@pytest.fixture(scope="module")
def crops(folder: Path) -> Callable[[dict[str, Any]], NDArray[np.uint8]]:
    def read(case: dict[str, Any]) -> NDArray[np.uint8]:
        image = Image.open(folder / "inputs" / case["image"]).convert("RGB")
        return np.asarray(image.crop(case["crop"]))

    return read


def sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def unpacked(bits: NDArray[np.uint8], size: Sequence[int]) -> NDArray[np.uint8]:
    width, height = size
    return np.unpackbits(bits)[: height * width].reshape(height, width)


def close(ours: Any, theirs: NDArray[Any], tolerance: float) -> None:
    np.testing.assert_allclose(
        np.asarray(ours, dtype=np.float64), theirs, rtol=0, atol=tolerance
    )


def relative(theirs: NDArray[Any], tolerance: float) -> float:
    return tolerance * float(np.abs(theirs).max())


def test_grids(tiles: dict[str, Any], tile: int) -> None:
    for case in tiles["grids"]:
        for most, grid in case["grid"].items():
            ours = tile_grid(*case["size"], int(most), tile)
            assert list(ours) == grid, (case["size"], most)


def test_tiles_of_every_image(
    tiles: dict[str, Any],
    tile: int,
    arrays: dict[str, NDArray[Any]],
    crops: Callable[[dict[str, Any]], NDArray[np.uint8]],
) -> None:
    for case in tiles["images"]:
        name = case["id"]
        ours = image_tiles(crops(case), max_tiles=case["max_num"], tile=tile)
        assert len(ours) == case["tiles"], name
        assert [sha256(one) for one in ours] == case["tile_uint8_sha256"], name
        assert ours.sum(axis=(1, 2, 3)).tolist() == case["tile_uint8_sum"], name
        pixels = normalize(torch.from_numpy(ours))
        assert list(pixels.shape) == case["pixel_values_shape"], name
        theirs = arrays[f"img/{name}"]
        stride = -(-tile // theirs.shape[-1])
        close(pixels[:, :, ::stride, ::stride], theirs, PIXELS)
        if sha256(pixels.numpy()) != case["pixel_values_sha256"]:
            sums = pixels.double().sum(dim=(1, 2, 3))
            close(sums, np.array(case["pixel_values_sum"]), PIXELS * pixels[0].numel())


def test_tiles_of_every_mask(
    tiles: dict[str, Any], tile: int, arrays: dict[str, NDArray[Any]]
) -> None:
    for case in tiles["masks"]:
        name, number = (case["kind"], case["dtype"]), case["id"]
        mask = unpacked(arrays[f"mask/{number}/input"], case["size"])
        mask = mask.astype(case["dtype"])
        # They are as many as the image's; the file has the grid for one maximum.
        assert list(tile_grid(*case["size"], 12, tile)) == case["grid_cols_rows"], name
        ours = mask_tiles(mask, max_tiles=12, tile=tile)
        assert str(ours.dtype) == case["tile_dtype"], name
        assert len(ours) == case["tiles"], name
        assert ours.sum(axis=(1, 2)).tolist() == case["tile_sum"], name
        assert [sha256(one) for one in ours] == case["tile_sha256"], name
        for one, values in zip(ours, case["tile_values"], strict=True):
            found = np.unique(one)
            assert (
                found.tolist() == values
                if isinstance(values, list)
                else len(found) == values
            ), name
        if f"mask/{number}/thumbnail" in arrays:
            assert (ours[-1] == arrays[f"mask/{number}/thumbnail"]).all(), name
            rows, columns = arrays[f"mask/{number}/wrap_yx"].T
            wrapped = arrays[f"mask/{number}/wrap_uint8"]
            assert (ours[-1][rows, columns] == wrapped).all(), name
        static, theirs = static_mask(mask, tile), case["static"]
        assert list(static.shape) == theirs["shape"], name
        assert str(static.dtype) == theirs["dtype"], name
        assert int(static.sum()) == theirs["sum"], name
        assert sha256(static) == theirs["sha256"], name


@dataclass(frozen=True)
class Family:
    """One of the checkpoints with what the reference said."""

    name: str
    folder: Path
    expected: dict[str, Any]
    numbers: dict[str, NDArray[Any]]

    @cached_property
    def captioner(self) -> UrecaCaptioner:
        return UrecaCaptioner.from_pretrained(
            self.folder / f"model_{self.name}", device="cpu"
        )


def families() -> Iterator[Any]:
    for name in ("internlm2", "qwen2"):
        yield pytest.param(name, id=name)


@pytest.fixture(scope="module", params=families())
def family(request: pytest.FixtureRequest, folder: Path) -> Family:
    expected = json.loads((folder / "model.json").read_text())
    if request.param not in expected:
        pytest.skip(f"no {request.param} in {folder}")
    with np.load(folder / "model.npz") as file:
        numbers = {
            key.removeprefix(f"{request.param}/"): file[key]
            for key in file
            if key.startswith(f"{request.param}/")
        }
    return Family(request.param, folder, expected[request.param], numbers)


def test_texts_as_ids(family: Family) -> None:
    tokenizer = family.captioner.tokenizer
    for case in family.expected["text_cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
    for token, number in family.expected["special_ids"].items():
        assert tokenizer.special[token] == number
    assert len(tokenizer) == family.expected["vocab"]
    assert (tokenizer.bos is not None) == family.expected["bos_prepended"]


def test_prompts(family: Family) -> None:
    config, tokenizer = family.captioner.model.config, family.captioner.tokenizer
    assert config.mask_channels is not None
    for case in family.expected["prompts"]:
        text = conversation(
            case["question"],
            case["image_tiles"] * config.tokens_per_tile,
            case["mask_tiles"] * config.mask_channels,
            [tuple(turn) for turn in case["history"] or ()],
        )
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert digest == case["prompt_sha256"], case["question"]
        ids = tokenizer.encode(text)
        assert len(ids) == case["n_ids"], case["question"]
        assert runs(ids) == case["ids_run_length"], case["question"]


def runs(ids: Sequence[int]) -> list[list[int]]:
    lengths: list[list[int]] = []
    for token in ids:
        if lengths and lengths[-1][0] == token:
            lengths[-1][1] += 1
        else:
            lengths.append([token, 1])
    return lengths


@dataclass(frozen=True)
class Run:
    """One run of the reference, and ours of the same."""

    case: dict[str, Any]
    numbers: dict[str, NDArray[Any]]
    captioner: UrecaCaptioner
    image: torch.Tensor
    masks: torch.Tensor
    ids: list[int]
    prefix: torch.Tensor
    rest: torch.Tensor


@pytest.fixture(scope="module")
def every_run(
    family: Family, crops: Callable[[dict[str, Any]], NDArray[np.uint8]]
) -> list[Run]:
    made = []
    for case in family.expected["runs"]:
        start = f"{case['run']}/"
        numbers = {
            key.removeprefix(start): value
            for key, value in family.numbers.items()
            if key.startswith(start)
        }
        loaded = family.captioner
        captioner = UrecaCaptioner(
            loaded.model,
            loaded.tokenizer,
            options=replace(
                loaded.options,
                dynamic_mask=case["dynamic_mask"],
                max_new_tokens=len(case["generated_ids"]),
            ),
        )
        mask = unpacked(numbers["mask_input"], case["size"]).astype(bool)
        image = captioner.model.image_tokens(
            torch.from_numpy(captioner.tiles(crops(case)))
        )
        masks = torch.from_numpy(captioner.mask_tiles(mask))
        question = "<image>\n<mask>\nDescribe this region in the image."
        shared, own = captioner.prompt_ids(question, len(image), len(masks))
        prefix = captioner.embed(shared, image=image)
        rest = captioner.embed(own, mask=captioner.model.mask_tokens(masks))
        ids = [*shared, *own]
        made.append(Run(case, numbers, captioner, image, masks, ids, prefix, rest))
    return made


def test_tokens_of_images_and_masks(every_run: list[Run]) -> None:
    for run in every_run:
        case, theirs, model = run.case, run.numbers, run.captioner.model
        assert len(run.image) == case["image_tiles"]
        assert len(run.masks) == case["mask_tiles"]
        assert [int(run.masks.min()), int(run.masks.max())] == case["mask_value_set"]
        maps = model.mask_maps(run.masks)
        step = -(-maps.shape[-1] // theirs["mask_conv_sub"].shape[-1])
        found = maps[:, :, ::step, ::step]
        tolerance = relative(theirs["mask_conv_sub"], TOKENS)
        close(found, theirs["mask_conv_sub"], tolerance)
        tokens = model.mask_tokens(run.masks)
        tolerance = relative(theirs["mask_tokens"], TOKENS)
        close(tokens, theirs["mask_tokens"], tolerance)
        step = -(-run.image.shape[1] // theirs["image_tokens_sub"].shape[1])
        tolerance = relative(theirs["image_tokens_sub"], TOKENS)
        close(run.image[:, ::step], theirs["image_tokens_sub"], tolerance)
        means = run.image.mean(dim=(1, 2))
        close(means, theirs["image_tokens_tile_mean"], tolerance)


@torch.inference_mode()
def test_mask_tokens_in_bfloat16(every_run: list[Run]) -> None:
    checked = 0
    for run in every_run:
        if "mask_tokens_bf16" not in run.numbers:
            continue
        theirs, model = run.numbers["mask_tokens_bf16"], run.captioner.model
        parts = (model.mask_encoder, model.mask_linear)
        try:
            for part in parts:
                part.to(torch.bfloat16)
            tokens = model.mask_tokens(run.masks)
        finally:
            for part in parts:
                part.float()
        assert tokens.dtype == torch.bfloat16
        close(tokens.float(), theirs, relative(theirs, BFLOAT16))
        checked += 1
    assert checked


def test_prompts_as_the_language_model_gets_them(every_run: list[Run]) -> None:
    for run in every_run:
        assert len(run.ids) == run.case["seq_len"]
        assert runs(run.ids) == run.case["ids_run_length"]
        whole = torch.cat([run.prefix, run.rest])
        for part in ("text", "image", "mask"):
            places = run.numbers[f"embeds_{part}_positions"]
            close(whole[places], run.numbers[f"embeds_{part}"], EMBEDDINGS)
        sums = run.numbers["embeds_row_sum"]
        close(whole.sum(dim=1), sums, EMBEDDINGS * max(1.0, np.abs(sums).max()))


@torch.inference_mode()
def test_logits_and_captions_of_every_run(every_run: list[Run]) -> None:
    for run in every_run:
        llm, special = run.captioner.model.llm, run.captioner.tokenizer.special
        whole = torch.cat([run.prefix, run.rest])
        # transformers' own pass over the converted weights, and ours.
        logits = llm(inputs_embeds=whole[None]).logits[0, -1]
        close(logits, run.numbers["first_logits"], LOGITS)
        region = RegionPrompt(read_prefix(llm, run.prefix), run.rest)
        (answer,) = run.captioner.answer([region])
        assert answer.ids == run.case["generated_ids"]
        best = torch.from_numpy(run.numbers["first_logits"]).softmax(dim=0).max()
        assert answer.probabilities[0] == pytest.approx(float(best), abs=LOGITS)
        assert run.captioner.text(answer.ids) == run.case["response"]
        assert special["<|im_end|>"] == run.case["eos_token_id"]


@torch.inference_mode()
def test_all_runs_together_say_the_same(every_run: list[Run]) -> None:
    captioner = every_run[0].captioner
    llm = captioner.model.llm
    regions = [
        RegionPrompt(read_prefix(llm, run.prefix), run.rest) for run in every_run
    ]
    limit = max(len(run.case["generated_ids"]) for run in every_run)
    answers = captioner.answer(regions, limit)
    for run, answer in zip(every_run, answers, strict=True):
        expected = run.case["generated_ids"]
        assert answer.ids[: len(expected)] == expected
