"""Every number of the golden folder, in ``compat="reference"``.

Sizes, widths and grids are read from the files: any folder of that format passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fiftyone_regioncap.captioning.patchioner.aggregation import (
    AttentionMap,
    Grid,
    Weighting,
    box_set_weights,
    box_weights,
    point_counts,
    to_input,
    whole_weights,
)
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.gpt2 import load_gpt2_tokenizer
from fiftyone_regioncap.captioning.patchioner.language import (
    DecapLanguage,
    ViecapLanguage,
)
from fiftyone_regioncap.captioning.patchioner.meacap import concepts
from fiftyone_regioncap.captioning.patchioner.memory import TextMemory, memory_file_name
from fiftyone_regioncap.captioning.patchioner.projection import TextProjection
from fiftyone_regioncap.captioning.patchioner.viecap import (
    Prompting,
    ViecapDecoder,
    choose_entities,
    entity_probabilities,
    hard_prompt,
)
from fiftyone_regioncap.captioning.patchioner.vision import DinoTower, preprocess
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.models.clip_tokenizer import END, ClipVocabulary
from tests.support.patchioner_reference import Answers, Request, forward

UNSURE = 5e-3
"""A margin between the two best tokens below which either may come first."""


@dataclass(frozen=True)
class Folder:
    """The golden folder, file by file."""

    path: Path

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.path / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return {
            key: torch.from_numpy(array) for key, array in self.arrays(name).items()
        }

    def facts(self, name: str) -> Any:
        return json.loads((self.path / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def folder(golden: Path) -> Folder:
    return Folder(golden / "patchioner")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clip_vocabulary() -> ClipVocabulary:
    return ClipVocabulary.load()


@pytest.fixture(scope="module")
def gpt2_tokenizer() -> Any:
    return load_gpt2_tokenizer()


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Within a tolerance, absolute for small values and relative for large ones."""
    np.testing.assert_allclose(
        np.asarray(ours), np.asarray(theirs), rtol=tolerance, atol=tolerance
    )


def same_ids(ours: Any, theirs: Any, margins: Any) -> None:
    """Equal ids row by row, up to the first step at which the choice was unsure."""
    for row, (mine, golden, margin) in enumerate(
        zip(ours, theirs, margins, strict=True)
    ):
        steps = min(len(mine), len(golden))
        unsure = np.flatnonzero(np.asarray(margin)[:steps] < UNSURE)
        stop = unsure[0] if unsure.size else steps
        assert list(mine[:stop]) == list(golden[:stop]), f"row {row}"


# --- aggregation ---------------------------------------------------------------------


def grid_of(features: np.ndarray, patch: int) -> Grid:
    rows, columns = features.shape[:2]
    return Grid(rows, columns, patch, rows * patch, columns * patch)


def pooled(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    return np.tensordot(weights, features, axes=2)


def points_of(trace: list[dict[str, float]]) -> np.ndarray:
    return np.array([[point["x"], point["y"]] for point in trace]).reshape(-1, 2)


def weighting_of(case: Mapping[str, Any]) -> Weighting:
    mode = case["mode"]
    if mode.startswith("attention"):
        return Weighting("attention")
    if mode.startswith("gauss"):
        variance = case.get("variance")
        if variance is None:
            variance = float(case["out"].split("gauss")[-1])
        return Weighting("gaussian", variance)
    return Weighting("mean")


def test_aggregation(folder: Folder) -> None:
    arrays, facts = folder.arrays("aggregation_in"), folder.facts("aggregation_in")
    wanted = folder.arrays("aggregation_out")
    checked = set()
    for case in folder.facts("aggregation_out")["cases"]:
        features = arrays[f"grid_{case['grid']}"]
        grid = grid_of(features, facts["patch"])
        weights = arrays[f"attn_{case['grid']}"].reshape(grid.rows, grid.columns)
        attention = AttentionMap(weights, "reference")
        golden = wanted.get(case["out"])
        checked.add(case["out"])
        match case["op"]:
            case "single":
                ours = features[case["row"], case["col"]]
            case "full_gaussian":
                weighting = Weighting("gaussian", case["variance"])
                ours = pooled(whole_weights(grid, weighting), features)
                if case["out"].endswith("any_of"):
                    assert np.abs(golden - ours).max(axis=1).min() < 1e-5
                    continue
            case "full_attention":
                whole = whole_weights(grid, Weighting("attention"), attention)
                ours = pooled(whole, features) / (grid.rows * grid.columns)
            case "boxes":
                ours = []
                for box in case["boxes"]:
                    if "isolated" in case["out"]:
                        attention = AttentionMap(weights)
                    if np.isnan(golden[len(ours)]).all():
                        with pytest.raises(PromptError):
                            box_weights(box, grid, weighting_of(case), attention)
                        ours.append(golden[len(ours)])
                        continue
                    chosen = box_weights(box, grid, weighting_of(case), attention)
                    ours.append(pooled(chosen, features))
                if case["out"] == f"{case['grid']}.box_attn_inplace":
                    after = f"{case['grid']}.attn_after_inplace"
                    close(attention.weights.ravel(), wanted[after], 1e-5)
                    checked.add(after)
            case "box_set":
                if np.isnan(golden).all():
                    with pytest.raises(PromptError):
                        box_set_weights(
                            case["boxes"], grid, weighting_of(case), attention
                        )
                    continue
                chosen = box_set_weights(
                    case["boxes"], grid, weighting_of(case), attention
                )
                ours = pooled(chosen, features)
            case "trace":
                name = case["out"].split("_", 1)[1]
                counts = point_counts(points_of(facts["traces"][name]), grid)
                key = case["out"]
                assert np.array_equal(counts, wanted[f"{key}.counts"]), key
                patches = grid.rows * grid.columns
                attended = pooled(counts * weights, features) / patches
                close(attended, wanted[f"{key}.attn"], 1e-5)
                checked |= {f"{key}.counts", f"{key}.attn"}
                ours = pooled(counts, features) / patches
            case unknown:
                pytest.fail(f"no such operation: {unknown}")
        close(ours, golden, 1e-5)
    assert checked >= set(wanted), set(wanted) - checked


def test_box_mapping(folder: Folder) -> None:
    patch = folder.facts("aggregation_in")["patch"]
    for case in folder.facts("aggregation_out")["box_mapping"]:
        width, height = case["image_wh"]
        for key in case.keys() - {"image_wh", "box_xywh"}:
            way, side = key.split("_")
            count = int(side) // patch
            grid = Grid(count, count, patch, height, width, way == "crop", int(side))
            close(to_input(case["box_xywh"], grid), case[key], 1e-5)


# --- memory and projection -----------------------------------------------------------


@pytest.mark.parametrize("values", ["raw", "normalised"])
def test_memory(folder: Folder, values: str) -> None:
    given, wanted = folder.tensors("memory_in"), folder.arrays("memory_out")
    facts = folder.facts("memory_out")[f"values_{values}"]
    rows, queries = given["memory"], given["queries"]
    texts = [f"caption {row}" for row in range(len(rows))]
    memory = TextMemory(rows, texts, raw_values=values == "raw")
    key = f"values_{values}"
    for normalize in (False, True):
        projected = memory.project(queries, normalize=normalize)
        close(projected, wanted[f"{key}.normalize_{normalize}"], 1e-4)
    close(memory.project(queries, temperature=0.1), wanted[f"{key}.tau_0.1"], 1e-4)
    assert len(memory) == wanted["values_raw.kept_rows"][0]
    assert np.isnan(memory.project(queries[:1] * 0)).all()
    assert np.isnan(wanted["zero_query"]).all()
    cosines, _ = memory.search(queries, wanted["values_raw.best5_sims"].shape[1])
    close(cosines, wanted["values_raw.best5_sims"], 1e-5)
    unit = queries / queries.norm(dim=1, keepdim=True)
    close(unit, wanted["query_after_inplace_l2"], 1e-5)
    nearest = memory.nearest_texts(queries, skip_zero_rows=True)
    assert nearest == facts["argmax_text"]
    assert memory_file_name(len(rows)) == facts["memory_file"]


def test_projection(folder: Folder) -> None:
    given, wanted = folder.tensors("projection_in"), folder.arrays("projection_out")
    text = given["text_features"]
    for key, golden in wanted.items():
        layer, what, *_ = key.split(".")
        state = {
            name.removeprefix(f"{layer}."): value
            for name, value in given.items()
            if name.startswith(f"{layer}.")
        }
        if what == "legacy_keys":
            state = {
                name.replace("hidden_layers.0.", "linear_layer2."): value
                for name, value in state.items()
            }
        activation = key.split("act_")[-1] if "act_" in key else "tanh"
        projection = TextProjection.from_state_dict(
            state, None if activation == "None" else activation
        )
        features = text.half() if what == "half_precision_input" else text
        if what == "inversion":
            close(projection.invert_linear(given["dino_like"]), golden, 1e-5)
        else:
            close(projection(features), golden, 1e-5)


# --- decoder -------------------------------------------------------------------------


def decoder_of(
    folder: Folder, replaced: Mapping[str, torch.Tensor] | None = None
) -> PrefixDecoder:
    state = folder.tensors("decoder_in")
    state.pop("prefix")
    heads = folder.facts("decoder_in")["n_head"]
    return PrefixDecoder.from_state_dict({**state, **(replaced or {})}, heads)


def decoder_inputs(folder: Folder, tag: str) -> tuple[PrefixDecoder, torch.Tensor]:
    facts = folder.facts("decoder_in")
    prefix = folder.tensors("decoder_in")["prefix"]
    if tag == "oov":
        name = "decoder.transformer.wte.weight"
        table = folder.tensors("decoder_in")[name]
        source = table[facts["out_of_vocab_source_row"]]
        table[facts["out_of_vocab_row"]] = source * facts["out_of_vocab_factor"]
        return decoder_of(folder, {name: table}), prefix
    scaled = {
        "unit": prefix,
        "raw_norm40": prefix * 40,
        "raw_norm40_div1369": prefix * 40 / 1369,
        "zero": prefix * 0,
        "nan": torch.full_like(prefix[:2], torch.nan),
    }
    return decoder_of(folder), scaled[tag]


@pytest.mark.parametrize(
    "tag", ["unit", "raw_norm40", "raw_norm40_div1369", "zero", "nan", "oov"]
)
def test_decoder(folder: Folder, clip_vocabulary: ClipVocabulary, tag: str) -> None:
    decoder, prefix = decoder_inputs(folder, tag)
    wanted = folder.arrays("decoder_out")
    facts = folder.facts("decoder_out")
    generated = decoder.generate(
        prefix, end_id=clip_vocabulary.end_id, early_stop=False
    )
    ids, margins = wanted[f"{tag}.ids"], wanted[f"{tag}.margin"]
    same_ids(generated.ids.tolist(), ids, margins)
    logits = decoder.logits(prefix, torch.from_numpy(ids).long())
    top = logits.topk(2).values
    close(top[..., 0] - top[..., 1], margins, 2e-3)
    chosen = logits.log_softmax(-1).gather(2, torch.from_numpy(ids).long()[..., None])
    close(chosen[..., 0], wanted[f"{tag}.logp"], 2e-3)
    sure = ~(margins < UNSURE).any(axis=1)
    score = generated.reference_score().numpy()[sure]
    np.testing.assert_allclose(score, wanted[f"{tag}.score"][sure], rtol=0.01)
    if tag == "unit":
        for step in (0, ids.shape[1] - 1):
            at = logits[:3, step]
            key = f"unit.step{step}_logits_first3"
            close(at[:, ::997], wanted[f"{key}.every_997"], 2e-3)
            best = at.gather(1, torch.from_numpy(wanted[f"{key}.top20_ids"]).long())
            assert (best.diff(dim=1) < UNSURE).all()
            close(best[:, 0], at.amax(dim=1), 1e-6)

    language = DecapLanguage(decoder, clip_vocabulary, compat="reference")
    described = language.describe(prefix)
    texts = facts[tag]["text"]
    if texts is None:
        assert [row.text for row in described] == [None] * len(prefix)
        fixed = replace(language, compat="fixed").describe(prefix)
        assert all(max(row.ids) < len(clip_vocabulary) for row in fixed)
        return
    assert facts[tag]["text_no_score"] == texts
    for row, text in enumerate(texts):
        if sure[row]:
            assert described[row].text == text


def test_decoder_keys_and_special_tokens(
    folder: Folder, clip_vocabulary: ClipVocabulary
) -> None:
    facts = folder.facts("decoder_out")
    decoder, prefix = decoder_inputs(folder, "unit")
    assert sorted(decoder.published_state_dict()) == facts["state_dict_keys"]
    margins = folder.arrays("decoder_out")["unit.margin"]
    scores = folder.arrays("decoder_out")["unit.score_batch1"]
    end = clip_vocabulary.end_id
    for row in np.flatnonzero(~(margins < UNSURE).any(axis=1)):
        alone = decoder.generate(prefix[row : row + 1], end_id=end, early_stop=False)
        assert alone.reference_score().item() == pytest.approx(scores[row], rel=0.01)
        stopped = decoder.generate(prefix[row : row + 1], end_id=end)
        kept = stopped.ids[0, : stopped.lengths[0]].tolist()
        golden = facts["early_stop_single"][row]
        if golden in (None, "None"):
            assert max(kept) >= len(clip_vocabulary)
        else:
            assert clip_vocabulary.decode(kept) == golden
        if facts["with_start_end"] is None:
            continue
        words = clip_vocabulary.decode(alone.ids[0].tolist()).split(END)[0]
        assert words + END == facts["with_start_end"][row]


# --- vision --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tower(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> DinoTower:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    facts = folder.facts("vision_in")
    saved = tmp_path_factory.mktemp("dino")
    save_file(folder.tensors("vision_in"), saved / "model.safetensors")
    Dinov2WithRegistersConfig(**facts["config"]).save_pretrained(saved)
    model = Dinov2WithRegistersModel.from_pretrained(saved).eval()
    return DinoTower(model, heads=facts["pseudo_heads"])


def image_of(folder: Folder) -> np.ndarray:
    name = folder.facts("vision_in")["image"]
    return np.array(Image.open(folder.path / name).convert("RGB"))


def test_vision(folder: Folder, tower: DinoTower) -> None:
    image, wanted = image_of(folder), folder.arrays("vision_out")
    for size in folder.facts("vision_in")["sizes"]:
        for way in ("squash", "crop"):
            sized = replace(tower, side=size, crop=way == "crop")
            given = preprocess(image, size, crop=sized.crop)
            key = f"{size}.{way}."
            close(given[:, ::31, ::31], wanted[key + "input_strided_31"], 1e-5)
            (features,) = sized.encode([image])
            places = wanted[key + "patch_indices"]
            close(features.patches[places], wanted[key + "patches"], 1e-3)
            close(features.patches.mean(dim=0), wanted[key + "patch_mean"], 1e-3)
            close(features.cls, wanted[key + "cls"], 1e-3)
            close(features.registers, wanted[key + "registers"], 1e-3)
            close(features.attention.ravel(), wanted[key + "self_attn"], 1e-5)
            logits = features.head_logits[:, places]
            close(logits, wanted[key + "head_maps_subset"], 1e-3)
            attended = torch.from_numpy(features.attention.ravel()) @ features.patches
            count = len(features.patches)
            close(attended / count, wanted[key + "avg_self_attn_token"], 1e-3)
            heads = features.head_attention @ features.patches / count
            close(heads, wanted[key + "head_tokens"], 1e-3)


def test_crops(folder: Folder) -> None:
    image = image_of(folder)
    (key,) = (k for k in folder.arrays("vision_out") if k.startswith("crop_boxes_"))
    side = int(key.rsplit("_", 1)[1])
    boxes = folder.facts("vision_out")["crop_boxes"]
    for box, golden in zip(boxes, folder.arrays("vision_out")[key], strict=True):
        x, y, width, height = box
        crop = Image.fromarray(image).crop((x, y, x + width, y + height))
        close(preprocess(np.array(crop), side), golden, 1e-5)


# --- ViECap and MeaCap ---------------------------------------------------------------


def viecap_of(folder: Folder, tokenizer: Any) -> ViecapDecoder:
    state = {
        name: value
        for name, value in folder.tensors("viecap_in").items()
        if name.startswith(("gpt.", "mapping_network."))
    }
    return ViecapDecoder.from_state_dict(
        state, tokenizer, folder.facts("viecap_in")["n_head"]
    )


def test_viecap_entities(folder: Folder, gpt2_tokenizer: Any) -> None:
    given, wanted = folder.tensors("viecap_in"), folder.arrays("viecap_out")
    facts = folder.facts("viecap_out")
    names = sorted(name.lower() for name in folder.facts("viecap_in")["entities"])
    assert names == facts["sorted_entities"]
    chances = entity_probabilities(given["features"], given["entity_embeddings"])
    close(chances, wanted["entity_probs"], 1e-3)
    for key in facts:
        if key.startswith("entities."):
            _, count, threshold = key.split(".", 2)
            chosen = choose_entities(
                chances,
                names,
                top_k=int(count[1:]),
                threshold=float(threshold.removeprefix("th")),
            )
            assert chosen == facts[key], key
    for key, golden in wanted.items():
        if key.endswith(".probs"):
            count = int(key.split(".")[1][1:])
            close(chances.topk(count, dim=1).values, golden, 1e-3)
    for prompt in facts["hard_prompt"]:
        assert hard_prompt(prompt["entities"]) == prompt["text"]
        assert gpt2_tokenizer.encode(prompt["text"]) == prompt["ids"]


MODES = {
    "hard_soft_first": Prompting(),
    "th0.2": Prompting(threshold=0.2),
    "hard_first": Prompting(soft_first=False),
    "soft_only": Prompting(hard=False),
    "only_hard": Prompting(soft=False),
    "beam5": Prompting(beams=5),
}


@pytest.mark.parametrize("mode", MODES)
def test_viecap_decoding(folder: Folder, gpt2_tokenizer: Any, mode: str) -> None:
    given, wanted = folder.tensors("viecap_in"), folder.arrays("viecap_out")
    facts, prompting = folder.facts("viecap_out"), MODES[mode]
    decoder, features = viecap_of(folder, gpt2_tokenizer), given["features"]
    close(decoder.soft_prompts(features).detach(), wanted["soft_prompt"], 1e-3)
    state = sorted([*decoder.state_dict(), "gpt.lm_head.weight"])
    assert state == sorted(facts["state_dict_keys"])
    chosen = choose_entities(
        entity_probabilities(features, given["entity_embeddings"]),
        facts["sorted_entities"],
        top_k=prompting.top_k,
        threshold=prompting.threshold,
    )
    output = decoder.generate(features, chosen, prompting, compat="reference")
    if prompting.beams == 1:
        margins = wanted[f"{mode}.margin64"]
        same_ids(output.generated.ids.tolist(), wanted[f"{mode}.ids64"], margins)
        sure = [
            not (margin[: len(ids)] < UNSURE).any()
            for margin, ids in zip(margins, output.ids, strict=True)
        ]
    else:
        sure = [True] * len(features)
    for row in np.flatnonzero(sure):
        assert output.texts[row] == facts[mode]["batch"][row]
        perplexity = decoder.perplexity(output.texts[row])
        close(perplexity, float(facts[mode]["perplexity"][row]), 1e-3)
    for row, golden in enumerate(facts[mode]["alone"]):
        one = features[row : row + 1]
        alone = decoder.generate(
            one, chosen[row : row + 1], prompting, compat="reference"
        )
        golden = golden[0] if isinstance(golden, list) else golden
        assert alone.texts == [golden], row
        # Without the reference's padding, captions don't depend on their batch.
    fixed = decoder.generate(features, chosen, prompting)
    for row, golden in enumerate(facts[mode]["alone"]):
        assert fixed.texts[row] == (golden[0] if isinstance(golden, list) else golden)


def test_meacap_concepts(folder: Folder) -> None:
    facts = folder.facts("meacap_in")
    vectors = {
        name: torch.nn.functional.normalize(torch.tensor(vector), dim=0)
        for name, vector in facts["entity_vectors"].items()
    }
    cases = zip(facts["cases"], folder.facts("meacap_out")["cases"], strict=True)
    for case, golden in cases:
        captions = [facts["captions"][number] for number in case["captions"]]
        graphs = [facts["graphs"][number] for number in case["captions"]]
        found = concepts(
            captions, graphs, lambda names: torch.stack([vectors[n] for n in names])
        )
        assert found == golden["concepts"]


# --- end to end ----------------------------------------------------------------------


def request_of(name: str, grid: Grid, facts: Mapping[str, Any]) -> Request:
    boxes = [to_input(box, grid) for box in facts["boxes_image_xywh"]]
    traces = [points_of(trace) for trace in facts["traces"]]
    plain = Request(get_cls_capt=False)
    if name.startswith("trace"):
        number, _, attended = name.removeprefix("trace").partition("_")
        chosen = [traces[int(number)]]
        return replace(plain, traces=chosen, use_attention_tracing=attended == "attn")
    boxed = replace(plain, bboxes=boxes)
    together = replace(boxed, get_controllable_capts=True)
    return {
        "cls": Request(),
        "attn": replace(plain, get_avg_self_attn_capt=True),
        "whole_uniform": replace(
            plain, get_avg_patch_capt=True, gaussian_img_variance=100
        ),
        "whole_gauss1": replace(plain, get_avg_patch_capt=True),
        "heads": replace(plain, get_attn_heads_capt=True),
        "registers": replace(plain, get_register_capts=True),
        "box_uniform": boxed,
        "box_gauss": replace(boxed, gaussian_avg=True),
        "box_gauss1": replace(boxed, gaussian_avg=True, gaussian_bbox_variance=1),
        "box_attn": replace(boxed, use_attn_map_for_bboxes=True),
        "set_uniform": together,
        "set_attn": replace(together, use_attn_map_for_bboxes=True),
        "patches": replace(plain, get_patch_capts=True),
        "patches_then_box": replace(boxed, get_patch_capts=True),
    }[name]


@pytest.fixture(scope="module")
def languages(
    folder: Folder, clip_vocabulary: ClipVocabulary, gpt2_tokenizer: Any
) -> dict[str, DecapLanguage | ViecapLanguage]:
    given = folder.tensors("e2e_in")
    memory = TextMemory(given.pop("memory"), folder.facts("e2e_in")["memory_texts"])
    decoder = decoder_of(folder, given)
    viecap = folder.facts("viecap_out")
    noise = DecapLanguage(decoder, clip_vocabulary, compat="reference")
    mem = replace(noise, memory=memory)
    return {
        "mem": mem,
        "noise": noise,
        "viecap": ViecapLanguage(
            viecap_of(folder, gpt2_tokenizer),
            viecap["sorted_entities"],
            folder.tensors("viecap_in")["entity_embeddings"],
            compat="reference",
        ),
        "argmax": replace(mem, nearest_text=True),
    }


def test_end_to_end(
    folder: Folder, tower: DinoTower, languages: dict[str, Any]
) -> None:
    image, wanted = image_of(folder), folder.arrays("e2e_out")
    facts, outputs = folder.facts("e2e_in"), folder.facts("e2e_out")
    sizes = folder.facts("vision_in")["sizes"]
    features = {s: replace(tower, side=s).encode([image])[0] for s in sizes}
    for tag, output in outputs.items():
        if tag == "argmax_text":
            continue
        kind, name = tag.split(".")
        language = kind.rstrip("0123456789")
        seen = features[int(kind.removeprefix(language))]
        answers = forward(seen, languages[language], request_of(name, seen.grid, facts))
        golden = wanted[f"{tag}.features"]
        embeddings = torch.cat(answers.embeddings)[-len(golden) :]
        close(embeddings, golden, 1e-3)
        check_answers(tag, answers, output, wanted)


def check_answers(
    tag: str, answers: Answers, output: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    rows = [row for rows in answers.described.values() for row in rows]
    margins = wanted.get(f"{tag}.min_margin")
    sure = np.ones(len(rows), dtype=bool)
    if margins is not None:
        golden = wanted[f"{tag}.ids"]
        sure[len(rows) - len(golden) :] = margins >= UNSURE
        for row, ids, certain in zip(
            rows[-len(golden) :], golden, margins >= UNSURE, strict=True
        ):
            if certain:
                assert list(row.ids) == list(ids), tag
    texts = iter(zip(rows, sure, strict=True))
    compared = set()
    for key, described in answers.described.items():
        # A token outside CLIP's vocabulary anywhere leaves no caption at all.
        captions = flat(output[key]) if output[key] else [None] * len(described)
        score_key = (
            key.replace("_capts", "_scores")
            if key.endswith("_capts")
            else f"{key}_scores"
        )
        compared |= {key, score_key}
        scores = flat(output.get(score_key, []))
        assert len(captions) == len(described), (tag, key)
        for place, caption in enumerate(captions):
            row, certain = next(texts)
            if not certain:
                continue
            # One caption alone comes back as bare text, of which lists of boxes take
            # the first letter.
            alone = tag.startswith("viecap") and key == "bbox_capts"
            if alone and caption is not None and len(caption) == 1:
                assert row.text is not None and row.text[0] == caption
            else:
                assert row.text == caption, (tag, key, place)
            if scores:
                assert row.score == pytest.approx(scores[place], rel=0.01), (tag, key)
    assert compared >= set(output), tag


def flat(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    return [item for value in values for item in flat(value)]


def test_nearest_texts_end_to_end(
    folder: Folder, tower: DinoTower, languages: dict[str, Any]
) -> None:
    image = image_of(folder)
    facts, output = folder.facts("e2e_in"), folder.facts("e2e_out")["argmax_text"]
    names = {
        "cls_capt": "cls",
        "avg_self_attn_capt": "attn",
        "attn_heads_capts": "heads",
        "avg_patch_capt": "whole_gauss1",
        "bbox_capts": "box_uniform",
        "register_capts": "registers",
        "patch_tokens_capts": "patches",
    }
    fits = []
    for size in folder.facts("vision_in")["sizes"]:
        (seen,) = replace(tower, side=size).encode([image])
        found = {
            key: forward(
                seen, languages["argmax"], request_of(names[key], seen.grid, facts)
            ).texts[key]
            for key in output
        }
        fits.append({key: flat(golden) == found[key] for key, golden in output.items()})
    # The files don't say which of the input sizes these were made at.
    assert any(all(fit.values()) for fit in fits), fits
