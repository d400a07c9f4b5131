"""DynRefer against the numbers of the reference, whatever their sizes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from fiftyone_regioncap.captioning.dynrefer.captioner import (
    DynReferCaptioner,
    passing,
    stack_views,
)
from fiftyone_regioncap.captioning.dynrefer.configuration import DynReferOptions
from fiftyone_regioncap.captioning.dynrefer.controls import control_text
from fiftyone_regioncap.captioning.dynrefer.deformable import (
    GROUPS,
    DeformableAlign,
    deformable_sample,
)
from fiftyone_regioncap.captioning.dynrefer.model import Decoding
from fiftyone_regioncap.captioning.dynrefer.roialign import roi_align
from fiftyone_regioncap.captioning.dynrefer.texts import class_prompt
from fiftyone_regioncap.captioning.dynrefer.weights import locate, read_trained
from fiftyone_regioncap.captioning.views import (
    CANDIDATES,
    RegionBox,
    context_box,
    hash_distances,
    mask_box,
    nested_views,
    perceptual_hash,
    pick_contexts,
    roi_in_view,
    to_gray,
    whole_pixels,
)
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import RegionClip
from tests.support.views import polygons_box

ALIGN = 1e-4
TEXT = 1e-5
VISION = 1e-4
LOGITS = 1e-3
SCORES = 1e-4
CAPTION_SCORE = 1e-3


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    path = golden / "dynrefer"
    if not path.is_dir():
        pytest.skip(f"no folder {path}")
    return path


@pytest.fixture(scope="module")
def images(folder: Path) -> Callable[[str], NDArray[np.uint8]]:
    def read(name: str) -> NDArray[np.uint8]:
        return np.asarray(Image.open(folder / "inputs" / name).convert("RGB"))

    return read


@pytest.fixture(scope="module")
def expected_views(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "views.json").read_text())


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_outputs.json").read_text())


@pytest.fixture(scope="module")
def captioner(folder: Path) -> DynReferCaptioner:
    torch.set_num_threads(1)
    return DynReferCaptioner.from_pretrained(
        folder / "model", device="cpu", options=DynReferOptions(dtype="float32")
    )


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return {key: file[key] for key in file}


def close(ours: Any, theirs: NDArray[Any], tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


def decode(segmentation: Any) -> NDArray[np.bool_]:
    rle = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    return coco_mask.decode(rle).astype(bool)


def box_of(segmentation: Any, width: int, height: int) -> RegionBox:
    if isinstance(segmentation, dict):
        return mask_box(decode(segmentation))
    return polygons_box(segmentation, width, height)


def bits(text: str) -> list[bool]:
    return [bit == "1" for bit in f"{int(text, 16):0{4 * len(text)}b}"]


def test_views_of_every_region(
    folder: Path,
    expected_views: Mapping[str, Any],
    images: Callable[[str], NDArray[np.uint8]],
    captioner: DynReferCaptioner,
) -> None:
    samples = arrays(folder / "views.npz")
    checked = 0
    for case in expected_views["cases"]:
        if "error" in case:
            continue
        name, count = case["id"], case["num_views"]
        frame, (width, height) = images(case["image"]), case["image_size"]
        box = box_of(case["segmentation"], width, height)
        assert box.tolist() == case["region_box"], name
        assert box.dtype == case["region_box_dtype"], name
        views = nested_views(frame, box, count=count)
        assert list(views.contexts) == case["t"], name
        assert views.crops.tolist() == case["crops_int"], name
        assert views.rois.tolist() == case["rois"], name
        boxes = [context_box(box, t, width, height) for t in views.contexts]
        assert np.array(boxes).tolist() == case["view_boxes"], name
        for row, (picture, view) in enumerate(
            zip(views.pictures, case["views"], strict=True)
        ):
            full = samples.get(f"{name}/u8_{row}")
            if sha256(picture) != view["uint8_sha256"]:
                # Another resampler than Pillow's may differ by one level.
                assert full is None or np.abs(picture - full.astype(int)).max() <= 1
                assert abs(int(picture.sum()) - view["uint8_sum"]) <= picture.size
                continue
            assert full is None or (picture == full).all(), name
            pixels = captioner.model.normalize(torch.from_numpy(picture.copy())[None])
            sub = pixels[0, :, 7::21, 7::21]
            close(sub, samples[f"{name}/sub{row}"], 1e-6)
            numbers = pixels.double()
            assert numbers.mean().item() == pytest.approx(view["mean"], abs=1e-6), name
            assert numbers.sum().item() / numbers.numel() == pytest.approx(
                view["sum"] / numbers.numel(), abs=1e-6
            ), name
            spread = numbers.std(correction=0).item()
            assert spread == pytest.approx(view["std"], abs=1e-5), name
            checked += 1
    assert checked


def sha256(picture: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


def test_hashes_that_the_image_prior_chooses_by(
    expected_views: Mapping[str, Any],
    images: Callable[[str], NDArray[np.uint8]],
) -> None:
    for case in expected_views["cases"]:
        if "error" in case:
            continue
        gray, (width, height) = to_gray(images(case["image"])), case["image_size"]
        box = box_of(case["segmentation"], width, height)
        hashes = case["hash_hex"]
        for t, text in zip((0.0, *CANDIDATES)[: len(hashes)], hashes, strict=True):
            ours = perceptual_hash(gray, context_box(box, t, width, height))
            assert ours.tolist() == bits(text), (case["id"], t)
        if case.get("hamming"):
            distances = hash_distances(gray, box)
            assert distances.tolist() == case["hamming"], case["id"]
            worth = distances / np.array(CANDIDATES)
            assert worth.tolist() == pytest.approx(case["scores"]), case["id"]
        if "candidate_boxes" in case:
            boxes = [
                context_box(box, t, width, height).tolist()
                for t in (0.0, *CANDIDATES)[: len(case["candidate_boxes"])]
            ]
            assert boxes == case["candidate_boxes"], case["id"]


def test_regions_that_the_reference_fails_on(
    expected_views: Mapping[str, Any],
    images: Callable[[str], NDArray[np.uint8]],
) -> None:
    for case in (case for case in expected_views["cases"] if "error" in case):
        frame, segmentation = images(case["image"]), case["segmentation"]
        region = (
            decode(segmentation)
            if isinstance(segmentation, dict)
            else polygons_box(segmentation, *case["image_size"])
        )
        try:
            views = nested_views(frame, region, count=case["num_views"])
        except PromptError as error:
            # Nothing of the region is on the image: there is nothing to look at.
            assert re.search("empty|outside", str(error)), case["id"]
        else:
            assert len(views.pictures) == case["num_views"], case["id"]
            assert case["error_stage"] != "box", case["id"]


def test_greedy_choice(expected_views: Mapping[str, Any]) -> None:
    for case in expected_views["greedy"]:
        chosen = pick_contexts(np.array(case["hamming"]), case["num_views"])
        assert list(chosen) == case["t"]
        box = np.array([10, 20, 50, 60])
        boxes = [context_box(box, t, 100, 80).tolist() for t in chosen]
        assert np.allclose(boxes, case["boxes"], atol=1e-5)


def test_rois(expected_views: Mapping[str, Any]) -> None:
    table = expected_views["roi_table"]
    width, height = table["image_size"]
    for row in table["rows"]:
        box = np.array(row["box"])
        own = context_box(box, 0, width, height)
        view = context_box(box, row["t"], width, height)
        assert view.tolist() == row["view_box"]
        region = whole_pixels(own, width, height)
        rois = [
            roi_in_view(region, crop, 224).tolist()
            for crop in (region, whole_pixels(view, width, height))
        ]
        assert rois == row["rois"]


def test_widths_whose_own_view_ends_short(expected_views: Mapping[str, Any]) -> None:
    short = {}
    for width in range(1, 400):
        box = np.array([0, 0, width, 100])
        x2 = float(roi_in_view(box, box, 224)[2])
        if x2 != 224:
            short[str(width)] = x2
    assert short == expected_views["full_box_roi_x2_not_224"]


def test_roi_align(folder: Path) -> None:
    steps = arrays(folder / "align_steps.npz")
    features = torch.from_numpy(steps["roialone_features"])
    rois = torch.from_numpy(steps["roialone_rois"])
    out = steps["roialone_output"]
    ours = roi_align(
        features[rois[:, 0].long()], rois[:, 1:], output=out.shape[-1], scale=1 / 14
    )
    close(ours, out, ALIGN)


def test_deformable_sampling(folder: Path) -> None:
    steps = arrays(folder / "align_steps.npz")
    ours = deformable_sample(
        torch.from_numpy(steps["dcn_value"]),
        torch.from_numpy(steps["dcn_offset_mask"]),
        GROUPS,
    )
    close(ours, steps["dcn_output"], ALIGN)


@torch.inference_mode()
def test_alignment_and_fusion_step_by_step(
    folder: Path, captioner: DynReferCaptioner
) -> None:
    steps = {
        k: torch.from_numpy(v) for k, v in arrays(folder / "align_steps.npz").items()
    }
    model, align = captioner.model, captioner.model.align
    rois = steps["rois"]
    features = model.roi_features(steps["features"], rois)
    close(features, steps["roi_features"], ALIGN)
    wider, own = features[1:], features[:1].expand(len(features) - 1, -1, -1, -1)
    value = align.value_proj(wider.permute(0, 2, 3, 1))
    close(value.flatten(1, 2), steps["align_value"], ALIGN)
    moves = align.offset_mask_dw(torch.cat([wider, own], dim=1))
    close(moves, steps["align_offset_mask_input"], ALIGN)
    offset_mask = align.offset_mask(moves.permute(0, 2, 3, 1))
    close(offset_mask.flatten(1, 2), steps["align_offset_mask"], ALIGN)
    sampled = deformable_sample(value, offset_mask, GROUPS)
    close(sampled.flatten(1, 2), steps["align_sampled"], ALIGN)
    close(align(wider, own), steps["align_output"], ALIGN)
    joined = model.fusion_input(steps["features"][None], rois[None])
    stride = -(-joined.shape[1] // steps["fusion_input_sub"].shape[1])
    close(joined[:, ::stride], steps["fusion_input_sub"], ALIGN)
    close(model.fusion[0](joined), steps["fusion_hidden"], ALIGN)
    close(model.fuse(steps["features"][None], rois[None]), steps["fused"], ALIGN)


def test_alignment_of_the_written_out_vector() -> None:
    def wave(shape: tuple[int, ...], a: float, b: float, scale: float) -> torch.Tensor:
        steps = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        return (scale * torch.sin(a * steps + b)).reshape(shape).float()

    align = DeformableAlign(64)
    align.load_state_dict(
        {
            "value_proj.weight": wave((64, 64), 0.11, 0.2, 0.15),
            "value_proj.bias": wave((64,), 0.9, 0.3, 0.05),
            "output_proj.weight": wave((64, 64), 0.13, 0.4, 0.15),
            "output_proj.bias": wave((64,), 0.7, 0.5, 0.05),
            "offset_mask_dw.weight": wave((64, 2, 3, 3), 0.29, 0.6, 0.3),
            "offset_mask_dw.bias": wave((64,), 0.31, 0.8, 0.1),
            "offset_mask.weight": wave((112, 64), 0.17, 0.9, 0.2),
            "offset_mask.bias": wave((112,), 0.23, 1.1, 0.5),
        }
    )
    shape = (2, 64, 16, 16)
    with torch.inference_mode():
        out = align(wave(shape, 0.37, 0.1, 1), wave(shape, 0.53, 0.7, 1))
    assert out.mean().item() == pytest.approx(0.000617679, abs=1e-6)
    assert out.std().item() == pytest.approx(0.312722, abs=1e-5)
    assert out.abs().sum().item() == pytest.approx(7901.4417, abs=1e-2)
    for place, value in {
        (0, 0, 0, 0): 0.007533,
        (0, 5, 3, 7): -0.347323,
        (1, 63, 15, 15): 0.030345,
        (1, 17, 8, 2): -0.629155,
    }.items():
        assert out[place].item() == pytest.approx(value, abs=2e-5)


def test_texts_and_their_embeddings(
    folder: Path, captioner: DynReferCaptioner, expected: Mapping[str, Any]
) -> None:
    numbers, texts = arrays(folder / "text_embeds.npz"), expected["texts"]
    prompts = [attribute.prompts() for attribute in captioner.attributes]
    assert list(captioner.tags) == texts["tag"]
    assert [p for each in prompts for p in each] == texts["attribute"]
    assert [len(each) for each in prompts] == expected["attr_prompts_per_attribute"]
    assert [class_prompt(name) for name in captioner.class_names] == texts["class"]
    tower = captioner.text_tower
    for kind, asked in texts.items():
        theirs = numbers[f"{kind}_ids"]
        ours = tower.token_ids(asked)
        assert (ours[:, : theirs.shape[1]] == theirs).all(), kind
        assert not ours[:, theirs.shape[1] :].any(), kind
    for kind, key in (
        ("tag", "clip_embeds"),
        ("attribute", "att_embeds"),
        ("class", "ov_embeds"),
    ):
        theirs = numbers[key]
        close(tower(texts[kind]), theirs, TEXT * max(1.0, np.abs(theirs).max()))


@dataclass(frozen=True)
class Run:
    rois: torch.Tensor
    vision: torch.Tensor
    fused: torch.Tensor
    tokens: torch.Tensor


@pytest.fixture(scope="module")
def run(
    captioner: DynReferCaptioner,
    expected: Mapping[str, Any],
    images: Callable[[str], NDArray[np.uint8]],
) -> Run:
    frame, model = images(expected["image"]), captioner.model
    height, width = frame.shape[:2]
    pictures, rois = stack_views(
        [
            nested_views(frame, box_of(s, width, height), count=model.config.views)
            for s in expected["segmentations"]
        ]
    )
    with torch.inference_mode():
        vision = model.encode(model.normalize(pictures.flatten(0, 1)))
        fused = model.fuse(vision.unflatten(0, rois.shape[:2]), rois)
        return Run(rois, vision, fused, model.query(fused))


@torch.inference_mode()
def test_numbers_end_to_end(
    folder: Path,
    captioner: DynReferCaptioner,
    expected: Mapping[str, Any],
    run: Run,
) -> None:
    theirs = arrays(folder / "end_to_end.npz")
    close(run.rois, theirs["rois"], 0)
    close(run.vision[:, ::37, ::3], theirs["vision_sub"], VISION)
    close(run.vision.mean(dim=(1, 2)), theirs["vision_mean"], VISION)
    close(run.fused[:, ::29], theirs["fused_sub"], VISION)
    close(run.fused.mean(dim=(1, 2)), theirs["fused_mean"], VISION)
    close(run.tokens, theirs["x_v"], VISION)
    model = captioner.model
    tag_texts, attribute_texts = captioner.tag_texts, captioner._attribute_texts
    assert tag_texts is not None and attribute_texts is not None
    close(model.tag_logits(run.tokens, tag_texts), theirs["tag_logits"], LOGITS)
    matches = model.match_logits(run.tokens, attribute_texts)
    close(matches, theirs["attr_prompt_logits"], LOGITS)
    close(captioner.attribute_scores(run.tokens), theirs["attr_scores"], SCORES)
    close(captioner.class_logits(run.tokens), theirs["class_logits"], LOGITS)
    threshold = captioner.options.tag_threshold
    tags = [
        [name for name, _ in passing(captioner.tags, scores, threshold)]
        for scores in captioner.tag_scores(run.tokens)
    ]
    assert tags == expected["tags"]

    ids, mask = captioner.controls.encode(expected["captioning"]["controls"])
    embeddings, seen = model.prompt(run.tokens, ids, mask)
    close(embeddings, theirs["llm_inputs_embeds"], VISION)
    assert (seen.numpy() == theirs["llm_attention_mask"]).all()
    encoded = model.language.encoder(inputs_embeds=embeddings, attention_mask=seen)
    close(encoded.last_hidden_state, theirs["llm_encoder_output"], LOGITS)
    start = torch.full((len(ids), 1), model.language.config.decoder_start_token_id)
    first = model.language(
        inputs_embeds=embeddings, attention_mask=seen, decoder_input_ids=start
    ).logits[:, 0]
    close(first, theirs["llm_first_logits"], LOGITS)


@torch.inference_mode()
def test_heads_under_bfloat16(
    folder: Path, captioner: DynReferCaptioner, run: Run
) -> None:
    theirs = arrays(folder / "end_to_end.npz")["tag_logits_cpu_bf16"]
    captioner.model.mixed = True
    try:
        assert captioner.tag_texts is not None
        ours = captioner.model.tag_logits(run.tokens, captioner.tag_texts)
        assert ours.dtype == torch.bfloat16
    finally:
        captioner.model.mixed = False
    close(ours.float(), theirs, 0.1)


@torch.inference_mode()
def test_captions_of_every_run(
    captioner: DynReferCaptioner, expected: Mapping[str, Any], run: Run
) -> None:
    told = expected["captioning"]
    ids, mask = captioner.controls.encode(told["controls"])
    for name, theirs in told["runs"].items():
        generated = captioner.model.generate(
            run.tokens, ids, mask, decoding(theirs["settings"])
        )
        assert generated.sequences.tolist() == theirs["sequences"], name
        assert captioner.decode(generated) == theirs["captions"], name
        assert generated.scores.tolist() == pytest.approx(
            theirs["sequences_scores"], rel=CAPTION_SCORE
        ), name
        probabilities = generated.probabilities
        assert ((probabilities > 0) & (probabilities <= 1)).all(), name


def decoding(settings: Mapping[str, Any]) -> Decoding:
    # No repetition penalty is said where there was none.
    return Decoding.read({"repetition_penalty": 1.0, **settings})


def test_control_tokens(
    captioner: DynReferCaptioner, expected: Mapping[str, Any]
) -> None:
    controls = captioner.controls
    for case in expected["control_tokens"]:
        ids, mask = controls.encode([case["text"]])
        assert ids[0].tolist() == case["input_ids"], case["text"]
        assert int(mask.sum()) == case["length"]
        assert controls.pieces(ids[0]) == case["pieces"]
        assert (
            any("|" in piece for piece in controls.pieces(ids[0])) == case["bar_kept"]
        )
    batch = expected["control_batch"]
    ids, mask = controls.encode(batch["texts"])
    assert ids.tolist() == batch["input_ids"]
    assert mask.tolist() == batch["attention_mask"]


def sure(expected: Mapping[str, Any], key: str) -> Iterator[tuple[int, Any]]:
    """Records, and of ``predict`` only those whose caption is stable under noise."""
    for record in expected[key]:
        if key != "predict" or record["id"] in (0, 1):
            yield record["id"], record


@torch.inference_mode()
@pytest.mark.parametrize("key", ["predict", "predict_no_controls"])
def test_records(
    key: str,
    folder: Path,
    captioner: DynReferCaptioner,
    expected: Mapping[str, Any],
    run: Run,
) -> None:
    controls = expected["predict_controls"] if key == "predict" else None
    tag_names = expected["tags"]
    told = [
        control_text(controls[row] if controls else [], names)
        for row, names in enumerate(tag_names)
    ]
    words = "predict_control_words" if controls else "predict_no_controls_words"
    assert told == expected[words]
    tag_scores = captioner.tag_scores(run.tokens)
    attributes = captioner.attribute_scores(run.tokens)
    classes = captioner.class_logits(run.tokens)
    threshold = captioner.options.tag_threshold
    for record in expected[key]:
        row = record["id"]
        tags = [n for n, _ in passing(captioner.tags, tag_scores[row], threshold)]
        assert tags == record["tag_set1"] == record["tag_set2"]
        close(attributes[row], np.array(record["attr"]), SCORES)
        close(classes[row], np.array(record["cls"]), LOGITS)
    settings = json.loads((folder / "model" / "config.json").read_text())
    ids, mask = captioner.controls.encode(told)
    generated = captioner.model.generate(
        run.tokens, ids, mask, decoding(settings["predict_kwargs"])
    )
    captions, scores = captioner.decode(generated), generated.scores.exp()
    for row, record in sure(expected, key):
        assert captions[row] == record["caption"]
        assert float(scores[row]) == pytest.approx(record["score"], rel=CAPTION_SCORE)


@torch.inference_mode()
def test_demo(
    captioner: DynReferCaptioner,
    expected: Mapping[str, Any],
    images: Callable[[str], NDArray[np.uint8]],
) -> None:
    frame = images(expected["image"])
    height, width = frame.shape[:2]
    for case in expected["demo"]:
        box = box_of(case["seg"], width, height)
        views = nested_views(frame, box, count=captioner.model.config.views)
        tokens = captioner.model.region_tokens(*stack_views([views]))
        attributes = captioner.attribute_scores(tokens)[0]
        ratio = captioner.options.attribute_ratio * float(attributes.mean())
        names = [attribute.name for attribute in captioner.attributes]
        shown = [name for name, _ in passing(names, attributes, ratio)]
        assert shown == case["attributes"], case["region"]
        best = int(captioner.class_logits(tokens)[0].argmax())
        assert captioner.class_names[best] == case["class"], case["region"]
        threshold = captioner.options.tag_threshold
        scores = captioner.tag_scores(tokens)[0]
        tags = [name for name, _ in passing(captioner.tags, scores, threshold)]
        generated = captioner.write(tokens, [control_text(case["controls"], tags)])
        assert captioner.decode(generated) == [case["caption"]], case["region"]
        assert float(generated.scores.exp()[0]) == pytest.approx(
            case["score"], rel=CAPTION_SCORE
        )


def test_the_captioner_says_what_the_demo_said(
    captioner: DynReferCaptioner,
    expected: Mapping[str, Any],
    images: Callable[[str], NDArray[np.uint8]],
) -> None:
    """Through the protocol: a mask whose inclusive box is the polygon's."""
    frame = images(expected["image"])
    for case in (case for case in expected["demo"] if case["controls"] != [""]):
        x1, y1, x2, y2 = box_of(case["seg"], frame.shape[1], frame.shape[0])
        mask = np.zeros(frame.shape[:2], dtype=bool)
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
        clip = RegionClip(frames=[frame], masks=[mask])
        [caption] = captioner.caption([clip], prompt=case["controls_text"])
        assert caption.error is None
        assert caption.text == case["caption"]
        assert [name for name, _ in caption.attributes] == case["attributes"]
        assert caption.category is not None
        assert caption.category[0] == case["class"]


def test_threshold_in_bfloat16(expected: Mapping[str, Any]) -> None:
    table = expected["tag_threshold_bf16"]
    logits = torch.tensor(table["logits_bf16"], dtype=torch.bfloat16)
    scores = logits.sigmoid()
    assert scores.float().tolist() == table["scores_bf16"]
    names = [str(row) for row in range(len(logits))]
    for threshold, theirs in table["first_passing"].items():
        over = passing(names, scores, float(threshold))
        assert over[0] == (str(theirs["index"]), theirs["score"])
        assert len(over) == theirs["count"]


def test_both_formats_of_the_checkpoint_are_one(folder: Path) -> None:
    trained = locate(folder / "model").trained
    one = read_trained(trained.with_suffix(".safetensors"))
    other = read_trained(trained.with_suffix(".pth"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
