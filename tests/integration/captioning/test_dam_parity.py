"""DAM against the numbers of its authors' code: every file of the golden folder.

Nothing about the checkpoint is written here: sizes, cases and settings come from the
files, so that any folder of that format can be put in.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.processing import crop_window
from fiftyone_regioncap.core.errors import PromptError, WeightsError
from fiftyone_regioncap.models.sampling import Sampling, SamplingRows, candidates
from tests.support import SHARED
from tests.support.dam import (
    embeddings,
    first_logits,
    generate,
    hidden_states,
    step_logits,
    stream,
)

FEATURES, PROJECTED, LOGITS = 1e-4, 5e-5, 3e-4


def folder() -> Path:
    given = os.environ.get("REGIONCAP_GOLDEN")
    root = Path(given or SHARED / "golden")
    return root / "dam" if (root / "dam").is_dir() else root


HERE = folder()
CASES = sorted(
    path.stem for path in HERE.glob("cases/*.json") if not path.stem.endswith("_layers")
)
pytestmark = pytest.mark.skipif(
    not CASES, reason=f"no DAM numbers in {HERE}; set REGIONCAP_GOLDEN"
)


def read(name: str) -> dict:
    path = HERE / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return json.loads(path.read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / f"{name}.npz") as stored:
        return dict(stored.items())


def picture(name: str) -> np.ndarray:
    return np.asarray(Image.open(HERE / name))


def close(ours: torch.Tensor | np.ndarray, theirs: np.ndarray, tolerance: float):
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def to_8_bit(views: torch.Tensor | np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.searchsorted(table, np.asarray(views)).astype(np.uint8)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def check_tensor(dam: DAM, views: torch.Tensor, expected: dict) -> None:
    floats = views.numpy().astype("<f4")
    assert [1, *floats.shape] == expected["shape"]
    assert digest(floats) == expected["sha256_float32_le"]
    assert digest(to_8_bit(floats, dam.processor.table[0])) == expected["sha256_uint8"]


def frames_of(case: dict) -> list[dict]:
    return case.get("frames") or [case]


def views_of(dam: DAM, case: dict) -> torch.Tensor:
    return torch.stack(
        [
            dam.prepare(picture(frame["image"]), picture(frame["mask"]))[0]
            for frame in frames_of(case)
        ]
    )


@pytest.fixture(scope="module")
def dam() -> DAM:
    torch.set_num_threads(1)
    return DAM.from_pretrained(HERE / "checkpoint", dtype=torch.float32)


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(name: str) -> dict:
    return read(f"cases/{name}")


@pytest.fixture(scope="module")
def numbers(name: str) -> dict[str, np.ndarray]:
    return arrays(f"cases/{name}")


@pytest.fixture(scope="module")
def views(dam: DAM, case: dict) -> torch.Tensor:
    return views_of(dam, case)


@pytest.fixture(scope="module")
def features(dam: DAM, views: torch.Tensor) -> torch.Tensor:
    return dam.features(views)


class TestCases:
    def test_windows(self, dam: DAM, case: dict) -> None:
        for frame in frames_of(case):
            _, window = dam.prepare(picture(frame["image"]), picture(frame["mask"]))
            assert window._asdict() == frame["window"]

    def test_input_tensors(
        self, dam: DAM, case: dict, views: torch.Tensor, numbers: dict
    ) -> None:
        for frame, tensor in zip(frames_of(case), views, strict=True):
            check_tensor(dam, tensor, frame["tensor"])
            same = torch.equal(tensor[:4], tensor[4:])
            assert same == frame["full_equals_crop"]
        stride = views.shape[-1] // 24
        sub = views[..., ::stride, ::stride].numpy()
        expected = numbers["image_tensor_sub"]
        close(sub.reshape(expected.shape), expected, 0)
        for key, value in numbers.items():
            if match := re.fullmatch(r"image_tensor_u8(?:_frame(\d+))?", key):
                ours = to_8_bit(views[int(match[1] or 0)], dam.processor.table[0])
                assert np.array_equal(ours, value)

    def test_tower(
        self, dam: DAM, views: torch.Tensor, features: torch.Tensor, numbers: dict
    ) -> None:
        same_twice = torch.cat([views[:, :4]] * 2, dim=1)
        outputs = {"full": dam.features(same_twice), "used": features}
        seen = set()
        for key, value in numbers.items():
            match = re.fullmatch(r"feat_(full|used)(?:_(frames|sub)_?([\d_]+))?", key)
            if not match:
                continue
            output = outputs[match[1]]
            if match[2] == "frames":
                output = output[[int(i) for i in match[3].split("_")]]
            elif match[2] == "sub":
                output = output[:, :: int(match[3])]
            close(output.reshape(value.shape), value, FEATURES)
            seen.add(match[1])
        assert seen == {"full", "used"}

    def test_projector(self, dam: DAM, features: torch.Tensor, numbers: dict) -> None:
        expected = numbers["proj"]
        close(dam.project(features).reshape(expected.shape), expected, PROJECTED)

    def test_prompts(self, dam: DAM, case: dict) -> None:
        for prompt in case["prompts"].values():
            ids = dam.prompt_ids(prompt["query"])
            assert ids == prompt["input_ids"]
            assert ids.count(-200) == len(frames_of(case))
            assert dam.config.tokens_per_image == prompt["num_image_tokens_each"]

    def test_logits(
        self, dam: DAM, case: dict, views: torch.Tensor, numbers: dict
    ) -> None:
        for title, prompt in case["prompts"].items():
            query = prompt["query"]
            prompt_input = embeddings(dam, views, query)
            assert len(prompt_input) == prompt["sequence_length"]
            close(first_logits(dam, views, query), numbers[f"logits_{title}"], LOGITS)
            if (expected := numbers.get(f"inputs_embeds_{title}")) is not None:
                close(prompt_input, expected, PROJECTED)
            if (expected := numbers.get(f"step_logits_{title}")) is not None:
                answer = prompt["greedy_ids_ignoring_stop"][: len(expected) - 1]
                close(step_logits(dam, views, query, answer), expected, LOGITS)

    def test_answers(self, dam: DAM, case: dict, views: torch.Tensor) -> None:
        for prompt in case["prompts"].values():
            unstopped = prompt["greedy_ids_ignoring_stop"]
            limit = len(unstopped)
            ids, _ = generate(dam, [views], [prompt["query"]], limit, ignore_stop=True)
            assert ids == [unstopped]
            ids, texts = generate(dam, [views], [prompt["query"]], limit)
            assert ids == [prompt["generated_ids"]]
            assert texts == [prompt["text"]]
            assert (ids[0][-1] == dam.tokenizer.eos) == (prompt["stopped_by"] == "eos")
            pieces = list(stream(dam, views, prompt["query"], limit))
            assert pieces == prompt["stream_chunks"]


@pytest.mark.parametrize(
    "file", sorted(HERE.glob("cases/*_layers.npz")), ids=lambda file: file.stem
)
def test_states_inside_the_tower(dam: DAM, file: Path) -> None:
    name = file.stem
    shapes = read(f"cases/{name}")["arrays"]
    views = views_of(dam, read(f"cases/{name.removesuffix('_layers')}"))
    with torch.inference_mode():
        full = hidden_states(dam.encoder, views[:, :4])
        context = list(full.values())[-1]
        crop = hidden_states(dam.encoder, views[:, 4:], context)
    ours = {f"full_{key}": x for key, x in full.items()}
    ours |= {f"crop_{key}": x for key, x in crop.items()}
    compared = 0
    for key, value in arrays(f"cases/{name}").items():
        layer = re.search(r"\d+$", key)
        if layer and int(layer[0]) >= dam.config.used_layers:
            continue  # without effect on anything, so not computed
        stride = -(-shapes[key][0][0] // len(value))
        close(ours[key][0, ::stride], value, FEATURES)
        compared += 1
    assert compared == len(ours)


def test_all_cases_in_one_batch(dam: DAM) -> None:
    prompts = [
        (views_of(dam, case), prompt)
        for case in (read(f"cases/{name}") for name in CASES)
        for prompt in case["prompts"].values()
    ]
    limit = len(prompts[0][1]["greedy_ids_ignoring_stop"])
    batch = [views for views, _ in prompts]
    queries = [prompt["query"] for _, prompt in prompts]
    generated = generate(dam, batch, queries, limit)
    assert generated.ids == [prompt["generated_ids"] for _, prompt in prompts]
    assert generated.texts == [prompt["text"] for _, prompt in prompts]
    unstopped = generate(dam, batch, queries, limit, ignore_stop=True)
    assert unstopped.ids == [p["greedy_ids_ignoring_stop"] for _, p in prompts]


def test_crop_windows() -> None:
    rows = read("crop_boxes")
    for row in rows["rows"]:
        values = dict(zip(rows["columns"], row, strict=True))
        mask = np.zeros((values["H"], values["W"]), dtype=bool)
        x, y = values["mask_x0"], values["mask_y0"]
        mask[y : y + values["mask_h"], x : x + values["mask_w"]] = True
        expected = tuple(values[f"win_{edge}"] for edge in ("x1", "y1", "x2", "y2"))
        assert crop_window(mask) == expected, values


def test_normalization_table(dam: DAM) -> None:
    table = np.asarray(read("u8_to_float")["table"], dtype=np.float32)
    assert np.array_equal(dam.processor.table, np.stack([table] * 3))
    values = np.arange(256, dtype=np.uint8).repeat(8).reshape(1, 256, 8).transpose()
    on_device = dam.normalize(torch.from_numpy(values.copy())[None])
    assert np.array_equal(on_device[0, :, :, 0], np.stack([table] * 8))


def test_preprocessing_stages(dam: DAM) -> None:
    stages = read("preprocess_stages")
    case = read(f"cases/{stages['case']}")
    views, _ = dam.processor.views(picture(case["image"]), picture(case["mask"]))
    floats = dam.processor.normalize(views)
    for stage, (first, last) in {
        "full_image": (0, 3),
        "full_mask": (3, 4),
        "crop_image": (4, 7),
        "crop_mask": (7, 8),
    }.items():
        for kind, array in (("resized_u8", views), ("normalised_f32", floats)):
            expected = stages["stages"][stage][kind]
            channels = array[first:last].transpose(1, 2, 0)
            color = np.broadcast_to(channels, expected["shape"])
            assert digest(color) == expected["sha256"], (stage, kind)
        stored = arrays("preprocess_stages_sub")[f"{stage}_resized_u8"]
        stride = -(-views.shape[-1] // len(stored))
        sub = views[first:last, ::stride, ::stride].transpose(1, 2, 0)
        assert np.array_equal(np.broadcast_to(sub, stored.shape), stored)


def variant_checkpoint(target: Path, changes: dict[str, dict]) -> Path:
    """A copy of the checkpoint with other settings, by the config's folder."""
    copy = target / "checkpoint"
    shutil.copytree(HERE / "checkpoint", copy)
    for part, settings in changes.items():
        path = copy / part / "config.json"
        path.chmod(0o644)
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return copy


def variant_inputs(name: str) -> Iterator[tuple[str, object, object]]:
    """Case, image and mask of a preprocessing variant."""
    stages_case = read("preprocess_stages")["case"]
    match = re.fullmatch(r"aspect_\w+?_(\w+)", name)
    case = match[1] if match else stages_case
    described = read(f"cases/{case}")
    image = Image.open(HERE / described["image"]).convert("RGB")
    mask = Image.open(HERE / described["mask"]).convert("L")
    palette = HERE / "inputs" / f"{case}_p.png"
    on = np.asarray(mask) > 0
    rows = np.arange(on.size).reshape(on.shape)
    made = {
        "mask_values_1_128": lambda: (image, on * np.where(rows % 2, 1, 128)),
        "mask_mode_1": lambda: (image, mask.point(lambda v: 255 * (v > 0), "1")),
        "image_mode_L": lambda: (image.convert("L"), mask),
        "image_gray_as_RGB": lambda: (image.convert("L").convert("RGB"), mask),
        "image_mode_RGBA": lambda: (
            Image.open(HERE / "inputs" / f"{case}_rgba.png"),
            mask,
        ),
        "image_mode_P": lambda: (Image.open(palette), mask),
        "image_P_as_RGB": lambda: (Image.open(palette).convert("RGB"), mask),
    }
    yield case, *made.get(name, lambda: (image, mask))()


def test_preprocessing_variants(dam: DAM, tmp_path: Path) -> None:
    expected = arrays("preprocess_variants")
    for name, facts in read("preprocess_variants").items():
        model = dam
        if match := re.fullmatch(r"aspect_(\w+?)_(\w+)", name):
            aspect = None if match[1] == "none" else match[1]
            copy = variant_checkpoint(
                tmp_path / name, {".": {"image_aspect_ratio": aspect}}
            )
            model = DAM.from_pretrained(copy)
        case, image, mask = next(variant_inputs(name))
        views, _ = model.prepare(image, mask)
        check_tensor(model, views, facts["tensor"])
        stride = views.shape[-1] // 24
        for key, ours in {
            f"{name}_sub": views[:, ::stride, ::stride],
            f"{name}_u8": to_8_bit(views.numpy(), model.processor.table[0]),
        }.items():
            if key in expected:
                close(ours, expected[key], 0)
        if f"{name}_logits" in expected:
            query = read(f"cases/{case}")["prompts"]["default"]["query"]
            logits = first_logits(model, views, query)
            close(logits, expected[f"{name}_logits"], LOGITS)
            assert logits.argmax() == facts["argmax"]


def test_settings(tmp_path: Path) -> None:
    expected = arrays("config_variants")
    for name, facts in read("config_variants").items():
        setting = re.fullmatch(
            r"(root|context_provider) config (\w+) = (.+?)(?: \(.*)?", facts["setting"]
        )
        assert setting
        part = "." if setting[1] == "root" else setting[1]
        changed = {part: {setting[2]: json.loads(setting[3])}}
        copy = variant_checkpoint(tmp_path / name, changed)
        if setting[2] == "context_provider_layer_indices":
            # The authors' code drops every adapter then; ours refuses.
            with pytest.raises(WeightsError, match="must be null"):
                DAM.from_pretrained(copy)
            continue
        model = DAM.from_pretrained(copy)
        case = read(f"cases/{facts['case']}")
        views = views_of(model, case)
        projected = expected[f"{name}_proj_sub4"]
        ours = model.project(model.features(views))[0, ::4]
        close(ours, projected, PROJECTED)
        query = case["prompts"][facts["prompt"]]["query"]
        logits = first_logits(model, views, query)
        close(logits, expected[f"{name}_logits"], LOGITS)
        assert logits.argmax() == facts["argmax"]


def test_tokenizer(dam: DAM) -> None:
    cases = read("tokenizer_cases")
    tokenizer = dam.tokenizer
    assert (tokenizer.bos, tokenizer.eos) == (cases["bos"], cases["eos"])
    assert len(tokenizer) == cases["vocab"]
    for row in cases["encode"]:
        assert tokenizer.prompt_ids(row["text"]) == row["ids"], row["text"]
    for row in cases["decode"]:
        assert tokenizer.decode(row["ids"]) == row["text"], row["ids"]


def test_sampling() -> None:
    recorded = read("sampling")
    if "small" not in CASES:
        pytest.skip("no case small, whose first logits are the base")
    logits = torch.from_numpy(arrays("cases/small")["logits_default"])[None]
    for row in recorded["cases"]:
        settings = Sampling(
            temperature=row["temperature"],
            top_k=row["top_k"] or 0,
            top_p=row["top_p"] or 1.0,
        )
        rows = SamplingRows.of([settings], logits.shape[1], logits.device)
        ids, probabilities = candidates(logits, rows)
        kept = probabilities[0] > 0
        ours = dict(
            zip(ids[0, kept].tolist(), probabilities[0, kept].tolist(), strict=True)
        )
        theirs = dict(zip(row["kept_ids"], row["probs"], strict=True))
        assert ours.keys() == theirs.keys(), settings
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_bad_input(dam: DAM) -> None:
    cases = {row["case"] for row in read("errors")}
    image = np.zeros((270, 480, 3), dtype=np.uint8)
    mask = np.zeros((270, 480), dtype=np.uint8)
    mask[100:150, 200:260] = 255
    views, _ = dam.prepare(image, mask)
    tagged = "<image>\nWhat is it?"
    refused = {
        "empty mask (all zero)": lambda: dam.prepare(image, mask * 0),
        "mask in RGB mode": lambda: dam.prepare(image, np.stack([mask] * 3, axis=-1)),
        "mask size differs from image size": lambda: dam.prepare(image, mask[:50]),
        "query without <image>": lambda: generate(dam, [views], ["What is it?"], 1),
        "1 image, 2 <image> tags": lambda: generate(dam, [views], [tagged * 2], 1),
        "2 images, 1 <image> tag (extra image silently ignored)": (
            lambda: generate(dam, [torch.stack([views] * 2)], [tagged], 1)
        ),
    }
    assert cases & refused.keys()
    for call in refused.values():
        with pytest.raises(PromptError):
            call()
