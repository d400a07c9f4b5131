from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from fiftyone_regioncap.captioning.patchioner.aggregation import (
    BoxSet,
    MaskRegion,
    Patch,
    Points,
    Weighting,
    Whole,
)
from fiftyone_regioncap.captioning.patchioner.captioner import (
    PatchionerCaptioner,
    tidy,
)
from fiftyone_regioncap.captioning.patchioner.checkpoint import (
    Checkpoint,
    PatchionerConfig,
)
from fiftyone_regioncap.captioning.patchioner.configuration import PatchionerOptions
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.language import ViecapLanguage
from fiftyone_regioncap.captioning.patchioner.meacap import ConceptReader
from fiftyone_regioncap.captioning.patchioner.memory import TextMemory, memory_file_name
from fiftyone_regioncap.captioning.patchioner.model import embed_regions
from fiftyone_regioncap.captioning.patchioner.text_encoder import PatchionerTexts
from fiftyone_regioncap.core.errors import BackendError, PromptError, WeightsError
from fiftyone_regioncap.core.types import RegionClip, Track
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary
from tests.support.patchioner import (
    CAPTIONS,
    write_random_checkpoint,
    write_viecap_checkpoint,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("patchioner"))


def load(folder: Path, **options: Any) -> PatchionerCaptioner:
    chosen = PatchionerOptions(**options)
    return PatchionerCaptioner.from_pretrained(folder, "cpu", chosen)


@pytest.fixture
def captioner(folder: Path) -> PatchionerCaptioner:
    return PatchionerCaptioner.from_pretrained(folder, "cpu")


def frame(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height)))


def square(left: int, top: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((60, 90), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


FRAMES = [frame(seed) for seed in range(3)]


def clip(*masks: np.ndarray, frames: Sequence[np.ndarray] = FRAMES) -> RegionClip:
    indices = tuple(range(len(masks)))
    return RegionClip(frames[: len(masks)], masks, indices)


CLIPS = [clip(square(x, y), square(x + 5, y)) for x in (0, 30, 60) for y in (0, 30)]


def test_captions_by_a_real_video(captioner: PatchionerCaptioner, clips: Path) -> None:
    video = clips / "dogs-jump"
    frames, labels = [], []
    for number in (0, 20, 40):
        frames.append(np.array(Image.open(video / f"frames/{number:05d}.jpg")))
        labels.append(np.array(Image.open(video / f"masks/{number:05d}.png")))
    tracks = [
        RegionClip(frames, [label == number for label in labels], (0, 20, 40))
        for number in (1, 2, 3)
    ]
    captions = captioner.caption(tracks)
    assert all(caption.error is None and caption.text for caption in captions)
    assert all(0 < (caption.confidence or 0) <= 1 for caption in captions)
    assert all(0 < caption.tokens <= 30 for caption in captions)
    vectors = captioner.embed(tracks)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_batches_don_t_change_captions(captioner: PatchionerCaptioner) -> None:
    together = captioner.caption(CLIPS)
    alone = [captioner.caption([one])[0] for one in CLIPS]
    assert [c.text for c in together] == [c.text for c in alone]
    assert len({c.text for c in together}) > 1  # regions matter


def test_frames_are_encoded_once(captioner: PatchionerCaptioner) -> None:
    passes = []
    tower = captioner.model.backbone

    class Counting:
        width, name, device = tower.width, tower.name, tower.device

        def encode(self, frames: Sequence[np.ndarray]) -> Any:
            passes.append(len(frames))
            return tower.encode(frames)

    counted = PatchionerCaptioner(replace(captioner.model, backbone=Counting()))
    first = counted.caption(CLIPS)
    assert sum(passes) == 2  # six clips on the same two frames
    assert counted.caption(CLIPS) == first
    counted.embed(CLIPS)
    assert sum(passes) == 2  # and later batches find them in the cache


def test_another_frame_at_the_same_address_is_not_confused(
    captioner: PatchionerCaptioner,
) -> None:
    small = PatchionerCaptioner(captioner.model, PatchionerOptions(cached_frames=1))
    mask = square(10, 10)
    for seed in range(20):  # freed frames leave their address to the next one
        image = frame(seed)
        fresh = PatchionerCaptioner(captioner.model)
        one = RegionClip([image], [mask])
        np.testing.assert_array_equal(small.embed([one]), fresh.embed([one]))
        del image, one


def test_a_track_is_the_visibility_weighted_mean(
    captioner: PatchionerCaptioner,
) -> None:
    big, small = square(0, 0, 40), square(50, 30, 10)
    features = captioner.features(FRAMES[:2])
    rows = [
        embed_regions(seen, [MaskRegion(mask)])[0]
        for seen, mask in zip(features, (big, small), strict=True)
    ]
    scores = np.array([0.5, 1.0])
    track = Track(1, np.array([0, 1]), np.zeros((2, 4)), scores)
    tracked = replace(clip(big, small), track=track)
    expected = rows[0] * 1600 * 0.5 + rows[1] * 100
    expected = expected / expected.norm()
    np.testing.assert_allclose(captioner.embed([tracked])[0], expected, atol=1e-5)
    # A frame where the object can't be seen doesn't count.
    hidden = clip(big, np.zeros_like(big))
    expected = rows[0] / rows[0].norm()
    np.testing.assert_allclose(captioner.embed([hidden])[0], expected, atol=1e-5)


EMPTY = np.zeros((60, 90), dtype=bool)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (clip(EMPTY, EMPTY), "empty on every frame"),
        (clip(square(0, 0)[:-1]), "a mask is (59, 90)"),
        (RegionClip(FRAMES, [square(0, 0)]), "3 frames and 1 masks"),
        (RegionClip([FRAMES[0][..., 0]], [square(0, 0)]), "give uint8"),
        (RegionClip([FRAMES[0] / 255], [square(0, 0)]), "give uint8"),
        (RegionClip([], []), "one or more frames"),
    ],
)
def test_bad_clips_leave_the_others_alone(
    captioner: PatchionerCaptioner, bad: RegionClip, words: str
) -> None:
    good = captioner.caption(CLIPS[:1])[0]
    captions = captioner.caption([CLIPS[0], bad, CLIPS[0]])
    assert words in (captions[1].error or "")
    assert captions[0].text == captions[2].text == good.text
    assert np.isnan(captioner.embed([bad, CLIPS[0]])).any(axis=1).tolist() == [
        True,
        False,
    ]


def test_a_mask_cut_off_by_cropping_leaves_the_others_alone(folder: Path) -> None:
    cropping = load(folder, crop=True)
    cut, seen = clip(square(0, 0, 10)), clip(square(40, 20))
    captions = cropping.caption([cut, seen, cut])
    assert [c.error is None for c in captions] == [False, True, False]
    assert "cropping" in (captions[0].error or "")


def test_numbers_that_are_none(
    captioner: PatchionerCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = captioner.caption(CLIPS[:2])
    weight = captioner.model.language.decoder.clip_project.model[0].bias
    before = weight.clone()
    weight.fill_(torch.nan)
    assert all("NaN" in (c.error or "") for c in captioner.caption(CLIPS[:2]))
    weight.copy_(before)
    assert [c.text for c in captioner.caption(CLIPS[:2])] == [c.text for c in expected]
    spoiled = [
        replace(f, patches=f.patches * torch.nan) for f in captioner.features(FRAMES)
    ]
    monkeypatch.setattr(
        captioner._features, "encode", lambda frames: spoiled[: len(frames)]
    )
    assert all("NaN" in (c.error or "") for c in captioner.caption(CLIPS[:2]))


def test_no_clips_at_all(captioner: PatchionerCaptioner) -> None:
    assert captioner.caption([]) == []
    assert captioner.embed([]).shape == (0, 64)


def test_prompts_are_refused(captioner: PatchionerCaptioner) -> None:
    with pytest.raises(BackendError, match="no prompt"):
        captioner.caption(CLIPS, prompt="What is it?")


def test_info(captioner: PatchionerCaptioner, folder: Path) -> None:
    info = captioner.info
    assert info.name == "patchioner" and info.model == str(folder)
    assert len(info.revision) == 64 and not info.prompts


def test_texts_live_in_the_space_of_regions(captioner: PatchionerCaptioner) -> None:
    vectors = captioner.embed_text(CAPTIONS)
    assert vectors.shape == (len(CAPTIONS), 64) and vectors.dtype == np.float32
    memory = captioner.model.language.memory
    found = memory.nearest_texts(torch.from_numpy(vectors))
    assert found == list(CAPTIONS)  # what the memory was built with, found again


def test_a_text_of_too_many_tokens(captioner: PatchionerCaptioner) -> None:
    with pytest.raises(PromptError, match="102 tokens, and CLIP reads 77"):
        captioner.embed_text(["dog " * 100])
    assert captioner.embed_text(["dog " * 100], truncate=True).shape == (1, 64)


def test_every_region_of_an_image(captioner: PatchionerCaptioner) -> None:
    regions = [
        Whole(),
        Patch(2, 3),
        BoxSet([(5, 5, 40, 30)]),
        BoxSet([(5, 5, 40, 30), (50, 10, 80, 50)]),
        Points(np.array([[10.0, 10], [50, 50]])),
        MaskRegion(square(3, 3)),
    ]
    for weighting in ("mean", "gaussian", "attention"):
        chosen = Weighting(weighting)  # type: ignore[arg-type]
        described = captioner.model.describe(FRAMES[0], regions, chosen)
        assert len(described) == len(regions) and all(row.text for row in described)


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "gaussian", "variance": 0.5},
        {"weighting": "attention"},
        {"rule": "index"},
        {"compat": "reference"},
        {"calculate_argmax_text": True},
        {"resize_dim": 98},
        {"crop": True, "frames": 1},
        {"dtype": "bfloat16"},
    ],
)
def test_options(folder: Path, options: dict[str, Any]) -> None:
    chosen = load(folder, **options)
    captions = chosen.caption(CLIPS)
    assert all(caption.text for caption in captions)


def test_the_noise_variant_has_no_memory(tmp_path: Path) -> None:
    noisy = write_random_checkpoint(tmp_path, memory=False)
    captioner = PatchionerCaptioner.from_pretrained(noisy, "cpu")
    language = captioner.model.language
    assert language.memory is None
    rows = torch.randn(3, 64) * 40
    lengths = language.prefixes(rows).norm(dim=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    raw = replace(language, compat="reference").prefixes(rows)
    assert torch.equal(raw, rows)


# --- checkpoints that are none -------------------------------------------------------


def changed_config(path: Path, **values: Any) -> None:
    file = path / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))


def drop_line(path: Path) -> None:
    values = yaml.safe_load((path / "config.yaml").read_text())
    del values["prefix_size"]
    (path / "config.yaml").write_text(yaml.safe_dump(values))


def empty_memory(path: Path) -> None:
    with h5py.File(path / memory_file_name(len(CAPTIONS)), "w") as file:
        file["coco_captions-embeddings"] = np.zeros((0, 64), np.float32)


def other_width(path: Path) -> None:
    with h5py.File(path / memory_file_name(len(CAPTIONS)), "w") as file:
        file["coco_captions-embeddings"] = np.ones((5, 32), np.float32)


def only_zeros(path: Path) -> None:
    with h5py.File(path / memory_file_name(len(CAPTIONS)), "w") as file:
        file["coco_captions-embeddings"] = np.zeros((5, 64), np.float32)


def no_embeddings(path: Path) -> None:
    with h5py.File(path / memory_file_name(len(CAPTIONS)), "w") as file:
        file["something"] = np.ones(3)


def other_vocabulary(path: Path) -> None:
    state = torch.load(path / "decoder.pt", weights_only=True)
    for name in ("decoder.transformer.wte.weight", "decoder.lm_head.weight"):
        state[name] = state[name][:1000].clone()
    torch.save(state, path / "decoder.pt")


def no_decoder_keys(path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, path / "decoder.pt")


def missing_key(path: Path) -> None:
    state = torch.load(path / "decoder.pt", weights_only=True)
    del state["decoder.transformer.ln_f.weight"]
    torch.save(state, path / "decoder.pt")


def extra_key(path: Path) -> None:
    state = torch.load(path / "decoder.pt", weights_only=True)
    torch.save({**state, "decoder.extra": torch.ones(1)}, path / "decoder.pt")


def data_parallel(path: Path) -> None:
    state = torch.load(path / "decoder.pt", weights_only=True)
    renamed = {f"module.{name}": value for name, value in state.items()}
    torch.save(renamed, path / "decoder.pt")


def pickle(path: Path) -> None:
    torch.save(Path("an object, not weights"), path / "decoder.pt")


def only_nan(path: Path) -> None:
    state = torch.load(path / "decoder.pt", weights_only=True)
    torch.save({n: v * torch.nan for n, v in state.items()}, path / "decoder.pt")


def backbone(**values: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "backbone" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


def backbone_of_nan(path: Path) -> None:
    file = path / "backbone" / "model.safetensors"
    state = {name: value * torch.nan for name, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def cut(path: Path) -> None:
    whole = (path / "decoder.pt").read_bytes()
    (path / "decoder.pt").write_bytes(whole[: len(whole) // 2])


def set_to(**values: Any) -> Callable[[Path], None]:
    return lambda path: changed_config(path, **values)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda path: (path / "config.yaml").unlink(), WeightsError, "config.yaml"),
        (drop_line, WeightsError, "lacks prefix_size"),
        (lambda p: (p / "config.yaml").write_text("- 1"), WeightsError, "not a Patch"),
        (lambda p: (p / "decoder.pt").unlink(), WeightsError, "no file decoder.pt"),
        (empty_memory, WeightsError, "no rows"),
        (only_zeros, WeightsError, "only rows of zeros"),
        (other_width, WeightsError, "32 channels, this model 64"),
        (no_embeddings, WeightsError, "no dataset"),
        (other_vocabulary, WeightsError, "1000 tokens, CLIP's vocabulary has 49408"),
        (no_decoder_keys, WeightsError, "decoder.pt is no decoder of this kind"),
        (missing_key, WeightsError, "ln_f.weight"),
        (extra_key, WeightsError, "decoder.extra"),
        (data_parallel, WeightsError, "module.clip_project"),
        (pickle, WeightsError, "more than tensors"),
        (cut, WeightsError, "cannot be read"),
        (only_nan, WeightsError, "nothing but NaN"),
        (backbone(num_hidden_layers=10**7), WeightsError, "num_hidden_layers is 10000"),
        (backbone(num_attention_heads=0), WeightsError, "num_attention_heads is 0"),
        (backbone(num_hidden_layers=3), WeightsError, "missing: encoder.layer.2"),
        (backbone_of_nan, WeightsError, "nothing but NaN"),
        (set_to(heads=0), WeightsError, "heads is 0"),
        (set_to(heads=7), WeightsError, "7 heads cannot split"),
        (set_to(resize_dim="big"), WeightsError, "resize_dim is 'big'"),
        (set_to(resize_dim=10**9), WeightsError, "resize_dim is 1000000000"),
        (set_to(viecap=[1]), WeightsError, r"viecap is \[1\]"),
        (set_to(compat="mine"), WeightsError, "compat is 'mine'"),
        (set_to(prefix_size=32), WeightsError, "reads 64 channels"),
        (set_to(dino_model="INViTE_B16"), BackendError, "invite is not supported"),
        (set_to(regionclip_config="x"), BackendError, "regionclip is not supported"),
        (set_to(proxyclip_clipmodel="B"), BackendError, "proxyclip is not supported"),
        (
            set_to(dino_model="dinov2_vitl14_reg4_dinotxt_tet1280d20h24l"),
            BackendError,
            "dinotxt is not supported",
        ),
        (set_to(dino_model="resnet", backbone=None), BackendError, "resnet is not"),
        (set_to(memory="../outside.h5"), WeightsError, "no file outside.h5"),
    ],
)
def test_bad_checkpoints(
    folder: Path, tmp_path: Path, spoil: Any, kind: type[Exception], words: str
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "outside.h5").touch()
    spoil(tmp_path / "copy")
    with pytest.raises(kind, match=words):
        PatchionerCaptioner.from_pretrained(tmp_path / "copy", "cpu")


def test_neither_folder_nor_repository() -> None:
    with pytest.raises(WeightsError, match="give a folder with"):
        Checkpoint.open("no such/thing at all")


def test_published_configurations_are_understood() -> None:
    published = {
        "decap_weights": "/somewhere/else/talkingdino-ksplits/coco_karpathy-009.pt",
        "prefix_size": 768,
        "linear_talk2dino": False,
        "support_memory_size": 591753,
        "dino_model": "dinov2_vitb14_reg",
        "normalize": True,
        "kkv_attention": False,
        "projection_type": "/somewhere/coco_train_karpathy.json",
    }
    config = PatchionerConfig.from_mapping(published)
    assert config.resize_dim == 518 and config.viecap is None
    viecap = {
        **published,
        "viecap": {
            "meacap": {"memory_id": "coco_B16_t2d", "memory_caption_num": 5},
            "weight_path": "/x/coco_prefix-0014.pt",
            "threshold": 0.4,
            "top_k": 3,
            "using_hard_prompt": True,
            "soft_prompt_first": True,
            "only_hard_prompt": False,
            "using_greedy_search": False,
            "beam_width": 5,
        },
    }
    part = PatchionerConfig.from_mapping(viecap).viecap
    assert part is not None
    assert part.prompting.beams == 5 and part.prompting.soft
    assert part.concepts and part.memory == "memory/coco_B16_t2d"


def test_decoders_are_saved_as_published(folder: Path) -> None:
    state = torch.load(folder / "decoder.pt", weights_only=True)
    head, table = "decoder.lm_head.weight", "decoder.transformer.wte.weight"
    assert torch.equal(state[head], state[table])
    PrefixDecoder.from_state_dict(state)  # strictly
    state[head] = state[head] + 1
    with pytest.raises(WeightsError, match="share them"):
        PrefixDecoder.from_state_dict(state)


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("a dog on the grass . ", "a dog on the grass."),
        ("a dog 's red ball , on grass", "a dog's red ball, on grass"),
        ("", ""),
    ],
)
def test_tidy(raw: str, read: str) -> None:
    assert tidy(raw) == read


def test_files_elsewhere_by_the_user_s_own_word(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    name = memory_file_name(len(CAPTIONS))
    moved = (tmp_path / "copy" / name).rename(tmp_path / "elsewhere.h5")
    captioner = load(tmp_path / "copy", memory=str(moved))
    assert captioner.caption(CLIPS)[0].text


@pytest.fixture(scope="module")
def viecap_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_viecap_checkpoint(tmp_path_factory.mktemp("viecap"), folder)


def test_viecap_checkpoints(viecap_folder: Path) -> None:
    captioner = PatchionerCaptioner.from_pretrained(viecap_folder, "cpu")
    language = captioner.model.language
    assert isinstance(language, ViecapLanguage) and len(language.names) == 80
    together = captioner.caption(CLIPS)
    alone = [captioner.caption([one])[0] for one in CLIPS]
    assert [c.text for c in together] == [c.text for c in alone]
    assert all(0 < (caption.confidence or 0) <= 1 for caption in together)
    rows = torch.from_numpy(captioner.embed(CLIPS))
    assert all(names for names in language.named(rows))
    torch.save({"x": torch.ones(1)}, viecap_folder / "other.pt")
    changed = {"viecap": {"weight_path": "other.pt"}}
    with pytest.raises(WeightsError, match=r"other\.pt is no decoder of this kind"):
        Checkpoint.open(viecap_folder, changed).load()


def test_meacap_names_concepts(viecap_folder: Path) -> None:
    from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

    words = ClipVocabulary.load()._tokenizer
    small = {"vocab_size": 49_408, "d_model": 16, "d_ff": 16, "num_layers": 1}
    ids = {"pad_token_id": 49_407, "eos_token_id": 49_407}
    t5 = T5Config(**small, num_heads=2, d_kv=8, **ids)
    bert = BertConfig(
        vocab_size=49_408,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    reader = ConceptReader(
        T5ForConditionalGeneration(t5).eval(), words, BertModel(bert).eval(), words
    )
    vectors = reader.encode(["a dog", "a cat on a mat"])
    np.testing.assert_allclose(vectors.norm(dim=1), 1, rtol=1e-5)
    alone = reader.encode(["a dog"])
    torch.testing.assert_close(vectors[:1], alone, atol=1e-5, rtol=1e-5)
    assert len(reader.graphs(["a dog runs", "a cat"])) == 2

    captioner = PatchionerCaptioner.from_pretrained(viecap_folder, "cpu")
    language = captioner.model.language
    captions = [f"{n} dogs on grass" for n in range(9)]
    memory = TextMemory(torch.randn(9, 64), captions)

    class Reading(ConceptReader):
        def graphs(self, captions: Sequence[str]) -> list[str]:
            return ["( dog , on , grass )"] * len(captions)

        def encode(self, names: Sequence[str]) -> torch.Tensor:
            return torch.eye(len(names))

    concepts = Reading(None, None, None, None)
    meacap = replace(language, memory=memory, concepts=concepts)
    (found,) = meacap.describe(torch.randn(1, 64))
    assert found.concepts == ("dog", "grass")


def test_every_pair_of_clips_has_its_own_vector(captioner: PatchionerCaptioner) -> None:
    vectors = captioner.embed(CLIPS)
    for first, second in itertools.combinations(vectors, 2):
        assert not np.array_equal(first, second)


def test_captions_come_with_the_embeddings_of_their_regions(
    captioner: PatchionerCaptioner, folder: Path
) -> None:
    bad = RegionClip([FRAMES[0]], [EMPTY])
    captions = captioner.caption([*CLIPS, bad])
    together = np.stack([caption.embedding for caption in captions[:-1]])
    np.testing.assert_array_equal(together, captioner.embed(CLIPS))
    assert captions[-1].error is not None and captions[-1].embedding is None
    space = captioner.info.space
    assert space is not None and space.dimension == together.shape[1]
    assert (space.captioner, space.model) == ("patchioner", str(folder.resolve()))
    without = load(folder, embeddings=False)
    assert without.info.space is None
    assert without.caption(CLIPS[:1])[0].embedding is None
    unknown = PatchionerCaptioner(captioner.model)  # of no checkpoint
    assert unknown.info.space is None
    assert unknown.caption(CLIPS[:1])[0].embedding is None


def test_a_fingerprint_is_of_what_makes_the_vectors(
    folder: Path, tmp_path: Path
) -> None:
    made = Checkpoint.open(folder)
    noise = Checkpoint.open(write_random_checkpoint(tmp_path / "n", memory=False))
    other = Checkpoint.open(write_random_checkpoint(tmp_path / "o", seed=1))
    assert noise.space.fingerprint == made.space.fingerprint  # another decoder
    assert noise.text_fingerprint == made.text_fingerprint
    assert other.space.fingerprint != made.space.fingerprint
    assert other.text_fingerprint != made.text_fingerprint
    for values in ({"resize_dim": 98}, {"crop": True}):
        changed = Checkpoint.open(folder, values)
        assert changed.space.fingerprint != made.space.fingerprint
        assert changed.text_fingerprint == made.text_fingerprint
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert Checkpoint.open(moved).space.fingerprint == made.space.fingerprint
    assert Checkpoint.open(moved).space.model == str(moved)


def test_the_text_side_needs_nothing_of_the_others(
    captioner: PatchionerCaptioner, folder: Path, tmp_path: Path
) -> None:
    alone = shutil.copytree(folder, tmp_path / "alone")
    for file in (alone / "backbone").glob("*"):
        file.unlink()
    for file in alone.glob("*.h5"):
        file.unlink()
    texts = ["a red car", "a dog"]
    placed = PatchionerTexts.from_pretrained(alone, "cpu").embed_text(texts)
    np.testing.assert_array_equal(placed, captioner.embed_text(texts))
    assert PatchionerTexts.from_pretrained(alone, "cpu").embed_text([]).shape[0] == 0
