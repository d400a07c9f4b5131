"""DynRefer's own behavior: loading, tasks, batches, tracks, and what is bad."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import Blip2QFormerConfig, Blip2VisionConfig, T5Config

from fiftyone_regioncap.captioning.dynrefer.captioner import (
    DynReferCaptioner,
    stack_views,
)
from fiftyone_regioncap.captioning.dynrefer.configuration import DynReferOptions
from fiftyone_regioncap.captioning.dynrefer.controls import control_text, control_words
from fiftyone_regioncap.captioning.dynrefer.heads import HeadSizes, QueryHead
from fiftyone_regioncap.captioning.dynrefer.model import DynReferConfig, DynReferModel
from fiftyone_regioncap.captioning.dynrefer.weights import (
    BLIP2,
    EVA_CLIP,
    load_model,
    load_text_tower,
    locate,
    our_names,
)
from fiftyone_regioncap.captioning.views import nested_views
from fiftyone_regioncap.core.errors import BackendError, OptionError, WeightsError
from fiftyone_regioncap.core.types import RegionClip

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def published(golden: Path) -> Path:
    path = golden / "dynrefer" / "model"
    if not path.is_dir():
        pytest.skip(f"no folder {path}")
    return path


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy that tests may spoil."""
    copy = tmp_path / "model"
    shutil.copytree(published, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    return copy


@pytest.fixture(scope="module")
def captioner(published: Path) -> DynReferCaptioner:
    torch.set_num_threads(1)
    return load(published, dtype="float32")


def load(folder: Path, device: str = "cpu", **options: Any) -> DynReferCaptioner:
    chosen = DynReferOptions(**options)
    return DynReferCaptioner.from_pretrained(folder, device=device, options=chosen)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def picture(seed: int, width: int = 120, height: int = 90) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=0).repeat(10, axis=1)


def box_mask(
    x1: int, y1: int, x2: int, y2: int, width: int = 120, height: int = 90
) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def clip(seed: int, *box: int) -> RegionClip:
    return RegionClip(frames=[picture(seed)], masks=[box_mask(*box)])


CLIPS = [
    clip(1, 10, 10, 40, 50),
    clip(1, 60, 20, 110, 80),
    clip(2, 0, 0, 120, 90),
    clip(3, 5, 70, 90, 88),
    clip(4, 33, 12, 34, 13),
]


def test_what_it_says_of_itself(captioner: DynReferCaptioner) -> None:
    info = captioner.info
    assert info.name == "dynrefer"
    assert info.tasks == {"caption", "tags", "attributes", "category"}
    assert len(info.revision) == 64


def test_batches_give_what_single_clips_give(captioner: DynReferCaptioner) -> None:
    together = captioner.caption(CLIPS)
    for alone, batched in zip(
        (captioner.caption([clip])[0] for clip in CLIPS), together, strict=True
    ):
        assert alone.error is None
        assert (alone.text, alone.tokens) == (batched.text, batched.tokens)
        assert alone.label == batched.label
        for ours, theirs in (
            (alone.tags, batched.tags),
            (alone.attributes, batched.attributes),
            ([alone.category], [batched.category]),
        ):
            assert [name for name, _ in ours] == [name for name, _ in theirs]
            scores = [score for _, score in ours]
            assert scores == pytest.approx([s for _, s in theirs], abs=1e-5)
            assert all(0 <= score <= 1 for score in scores)
        assert alone.confidence == pytest.approx(batched.confidence, abs=1e-5)
        assert alone.min_confidence is None or (
            0 <= alone.min_confidence <= alone.confidence <= 1
        )


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_the_encoders_batch_changes_nothing(
    captioner: DynReferCaptioner, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = captioner.caption(CLIPS)
    options = replace(captioner.options, regions_at_once=at_once)
    monkeypatch.setattr(captioner, "options", options)
    after = captioner.caption(CLIPS)
    assert [a.text for a in after] == [b.text for b in before]


def test_all_views_of_a_frame_go_through_the_encoder_at_once(
    captioner: DynReferCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    encode = captioner.model.encode

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(captioner.model, "encode", counted)
    options = replace(captioner.options, regions_at_once=32)
    monkeypatch.setattr(captioner, "options", options)
    captioner.caption(CLIPS)
    assert sizes == [len(CLIPS) * captioner.model.config.views]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        pytest.param(clip(1, 0, 0, 0, 0), "empty", id="empty mask"),
        pytest.param(RegionClip(frames=[], masks=[]), "0 frames", id="no frames"),
        pytest.param(
            RegionClip(frames=[picture(1)], masks=[np.ones((9, 9), dtype=bool)]),
            "size",
            id="mask of another size",
        ),
        pytest.param(
            RegionClip(frames=[picture(1)], masks=[]), "masks", id="no mask at all"
        ),
        pytest.param(
            RegionClip(frames=[picture(1)[..., 0]], masks=[box_mask(1, 1, 5, 5)]),
            "RGB",
            id="grey frame",
        ),
    ],
)
def test_a_bad_clip_says_why_and_leaves_the_others_alone(
    captioner: DynReferCaptioner, bad: RegionClip, why: str
) -> None:
    alone = captioner.caption(CLIPS[:2])
    first, wrong, second = captioner.caption([CLIPS[0], bad, CLIPS[1]])
    assert wrong.error is not None and why in wrong.error
    assert wrong.text == ""
    assert [first.text, second.text] == [caption.text for caption in alone]


@pytest.mark.parametrize(
    "weight",
    [
        "fusion.2.bias",
        "tags.fc.bias",
        "attributes.temperature",
        "language_projection.bias",
    ],
)
def test_scores_that_are_no_numbers(captioner: DynReferCaptioner, weight: str) -> None:
    tensor = captioner.model.get_parameter(weight)
    before = tensor.clone()
    try:
        tensor.data.fill_(torch.nan)
        captions = captioner.caption(CLIPS[:2])
    finally:
        tensor.data.copy_(before)
    assert all("no numbers" in (caption.error or "") for caption in captions)
    assert all(not caption.text and not caption.tags for caption in captions)


def test_one_frame_of_no_numbers_leaves_the_others_alone(
    captioner: DynReferCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag_scores = captioner.tag_scores

    def spoiled(tokens: torch.Tensor) -> torch.Tensor:
        scores = tag_scores(tokens)
        scores[1, 0] = torch.nan
        return scores

    expected = captioner.caption(CLIPS[:3])
    monkeypatch.setattr(captioner, "tag_scores", spoiled)
    first, wrong, last = captioner.caption(CLIPS[:3])
    assert wrong.error is not None and wrong.text == ""
    assert [first.text, last.text] == [expected[0].text, expected[2].text]


def test_nothing_in_nothing_out(captioner: DynReferCaptioner) -> None:
    assert captioner.caption([]) == []


def test_a_track_is_the_mean_of_its_frames(captioner: DynReferCaptioner) -> None:
    masks = [box_mask(10, 10, 40, 50), box_mask(20, 15, 80, 80), box_mask(0, 0, 0, 0)]
    frames = [picture(1), picture(2), picture(3)]
    track = RegionClip(frames=frames, masks=masks, frame_indices=(0, 5, 9))
    tokens = captioner.model.region_tokens(
        *stack_views(
            [nested_views(f, m) for f, m in zip(frames[:2], masks[:2], strict=True)]
        )
    )
    [said] = captioner.caption([track])
    mean = captioner.tag_scores(tokens).mean(dim=0)
    threshold = captioner.options.tag_threshold
    over = {
        name: float(score)
        for name, score in zip(captioner.tags, mean, strict=True)
        if score > threshold
    }
    assert dict(said.tags) == pytest.approx(over, abs=1e-5)
    attributes = captioner.attribute_scores(tokens).mean(dim=0)
    ratio = captioner.options.attribute_ratio * float(attributes.mean())
    assert len(said.attributes) == int((attributes > ratio).sum())
    matches = captioner.model.attributes.match_probability(
        captioner.class_logits(tokens)
    ).mean(dim=0)
    assert said.category is not None
    assert said.category[0] == captioner.class_names[int(matches.argmax())]
    # The second frame shows it best; the words are those of the whole track.
    generated = captioner.write(tokens[1:], [control_text([], over)])
    assert captioner.decode(generated) == [said.text]


def test_a_track_looks_at_no_more_frames_than_asked(
    captioner: DynReferCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(captioner.options, frames=2, regions_at_once=32)
    monkeypatch.setattr(captioner, "options", options)
    selection = captioner._select_frames(
        [
            RegionClip(
                frames=[picture(seed) for seed in range(7)],
                masks=[box_mask(10, 10, 30 + seed, 40) for seed in range(7)],
                frame_indices=tuple(range(7)),
            )
        ]
    )
    assert len(selection.frames) == 2
    assert selection.rows == [[0, 1]]


@pytest.mark.parametrize("contexts", ["task", (0, 0.3, 0.7)])
def test_other_contexts(
    published: Path, captioner: DynReferCaptioner, contexts: Any
) -> None:
    other = load(published, contexts=contexts)
    ours, theirs = captioner.caption(CLIPS[:2]), other.caption(CLIPS[:2])
    assert all(caption.error is None for caption in theirs)
    assert ours != theirs


@pytest.mark.parametrize("task", ["caption", "tags", "attributes", "category"])
def test_single_tasks(published: Path, captioner: DynReferCaptioner, task: str) -> None:
    only = load(published, tasks=(task,))
    [whole] = captioner.caption(CLIPS[:1])
    [part] = only.caption(CLIPS[:1])
    assert only.info.tasks == {task}
    assert part.text == (whole.text if task == "caption" else "")
    assert part.tags == (whole.tags if task == "tags" else ())
    assert part.attributes == (whole.attributes if task == "attributes" else ())
    assert part.category == (whole.category if task == "category" else None)


def test_mixed_precision_stays_close(
    published: Path, captioner: DynReferCaptioner
) -> None:
    mixed = load(published, dtype="bfloat16")
    pictures = stack_views([nested_views(CLIPS[0].frames[0], CLIPS[0].masks[0])])
    with torch.inference_mode():
        ours = captioner.tag_scores(captioner.model.region_tokens(*pictures))
        theirs = mixed.tag_scores(mixed.model.region_tokens(*pictures))
    assert theirs.dtype == torch.bfloat16
    assert torch.allclose(ours, theirs.float(), atol=0.05)
    assert mixed.caption(CLIPS[:2])[0].error is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_stays_close(published: Path, captioner: DynReferCaptioner) -> None:
    exact = load(published, "cuda", dtype="float32")
    mixed = load(published, "cuda")
    for clip, here in zip(CLIPS, captioner.caption(CLIPS), strict=True):
        [there], [quick] = exact.caption([clip]), mixed.caption([clip])
        assert (there.text, there.label) == (here.text, here.label)
        assert quick.error is None
    views = stack_views([nested_views(CLIPS[0].frames[0], CLIPS[0].masks[0])])
    with torch.inference_mode():
        ours = captioner.tag_scores(captioner.model.region_tokens(*views))
        theirs = mixed.tag_scores(mixed.model.region_tokens(*views))
    assert torch.allclose(ours, theirs.cpu().float(), atol=0.05)


def test_control_words_change_the_caption(captioner: DynReferCaptioner) -> None:
    plain = captioner.caption(CLIPS)
    told = captioner.caption(CLIPS, prompt="red, dog | old")
    assert [c.tags for c in plain] == [c.tags for c in told]
    assert [c.text for c in plain] != [c.text for c in told]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        pytest.param(None, [], id="none"),
        pytest.param("", [], id="empty"),
        pytest.param("red", ["red"], id="one"),
        pytest.param(" red,, |dog| ", ["red", "dog"], id="several"),
    ],
)
def test_control_words(prompt: str | None, words: list[str]) -> None:
    assert control_words(prompt) == words


def test_control_words_come_once_and_in_order() -> None:
    assert control_text(["dog", "red"], ["ball", "dog"]) == "dog,red,ball|"
    assert control_text([], []) == "|"


def test_class_list_with_doubles_and_thousands(captioner: DynReferCaptioner) -> None:
    before = captioner.class_names
    [expected] = captioner.caption(CLIPS[:1])
    try:
        with pytest.warns(UserWarning, match="2 of the class names"):
            captioner.use_classes([*before, before[0].upper(), " "])
        assert captioner.class_names == before
        assert captioner.caption(CLIPS[:1]) == [expected]
        many = [f"thing {number}" for number in range(3000)]
        captioner.use_classes([*many, *before])
        [caption] = captioner.caption(CLIPS[:1])
        assert caption.category is not None and expected.category is not None
        assert caption.category[1] >= expected.category[1] - 1e-6
        captioner.use_classes([])
        assert captioner.caption(CLIPS[:1])[0].category is None
    finally:
        captioner.use_classes(before)


def test_texts_in_pieces_score_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes = HeadSizes(width=8, hidden=16, layers=2, heads=2, text_width=10)
    head = QueryHead(12, sizes, normalize=True)
    tokens, texts = torch.randn(3, 5, 12), torch.randn(50, 10)
    whole = head(tokens, texts)
    monkeypatch.setattr("fiftyone_regioncap.captioning.dynrefer.heads.ROWS_AT_ONCE", 21)
    assert torch.allclose(head(tokens, texts), whole, atol=1e-6)


# Loading -----------------------------------------------------------------------------


def to_authors_layout(folder: Path) -> None:
    """The same tensors in the files and under the names that are published."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "dynrefer_ckpt.pth").rename(folder / "vg1.2_5e.pth")
    (folder / "dynrefer_ckpt.safetensors").unlink()
    base = load_file(folder / "base_blip2.safetensors")
    (folder / "base_blip2.safetensors").unlink()
    prefix = "visual_encoder."
    tower = {k.removeprefix(prefix): v for k, v in base.items() if k.startswith(prefix)}
    torch.save({**tower, "norm.weight": torch.ones(3)}, folder / "eva_vit_g.pth")
    rest = {k: v for k, v in base.items() if not k.startswith(prefix)}
    torch.save(
        {"model": {**rest, "t5_proj.bias": torch.ones(3)}},
        folder / "blip2_pretrained_flant5xl.pth",
    )
    language = folder / "flan-t5-xl"
    language.mkdir()
    save_sharded(load_file(folder / "t5.safetensors"), language)
    (folder / "t5.safetensors").unlink()
    (language / "config.json").write_text(json.dumps(config.pop("t5")))
    (folder / "tokenizer.json").rename(language / "tokenizer.json")
    rename_texts(folder, config)


def to_hub_layout(folder: Path) -> None:
    """The base as the hub has it: one repository in transformers' format."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "dynrefer_ckpt.pth").unlink()
    (folder / "dynrefer_ckpt.safetensors").rename(folder / "dynrefer_ckpt.safetensors")
    model = load_model(locate(folder))
    hub = folder / "blip2-flan-t5-xl"
    hub.mkdir()
    state = {
        k.replace("vision.", "vision_model."): v.clone()
        for k, v in model.state_dict().items()
        if k.startswith("vision.") or k == "query_tokens"
    }
    state |= {
        f"language_model.{k}": v
        for k, v in load_file(folder / "t5.safetensors").items()
        if "embed_tokens" not in k
    }
    save_sharded({**state, "qformer.layernorm.bias": torch.ones(3)}, hub)
    (hub / "config.json").write_text(json.dumps({"text_config": config.pop("t5")}))
    (folder / "tokenizer.json").rename(hub / "tokenizer.json")
    (folder / "t5.safetensors").unlink()
    (folder / "base_blip2.safetensors").unlink()
    rename_texts(folder, config)


def save_sharded(state: Tensors, folder: Path) -> None:
    """Two files and their index."""
    names = sorted(state)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: state[key].contiguous() for key in keys}, folder / file)
    index = {key: file for file, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )


def rename_texts(folder: Path, config: dict[str, Any]) -> None:
    with np.load(folder / "eva_clip_text.npz") as file:
        text = {key: torch.from_numpy(file[key]) for key in file}
    torch.save({**text, "visual.conv": torch.ones(2)}, folder / EVA_CLIP[1])
    (folder / "eva_clip_text.npz").unlink()
    tags = (folder / "tag_list.txt").read_text().splitlines()
    (folder / "tag_list.txt").rename(folder / "ram_tag_list.txt")
    (folder / "attributes.json").rename(folder / "ovad2000.json")
    (folder / "classes.json").rename(folder / "coco.json")
    (folder / "config.json").write_text(json.dumps({**config, "num_tags": len(tags)}))


@pytest.mark.parametrize("layout", [to_authors_layout, to_hub_layout])
def test_published_layouts(
    folder: Path, captioner: DynReferCaptioner, layout: Callable[[Path], None]
) -> None:
    layout(folder)
    other = load(folder)
    ours, theirs = captioner.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert other.caption(CLIPS[:2]) == captioner.caption(CLIPS[:2])


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' checkpoints, as the specification lists them."""
    shapes: dict[str, tuple[int, ...]] = {"cem_memory": (2048,)}

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def attention(name: str, width: int, seen: int) -> None:
        linear(f"{name}.self.query", width, width)
        linear(f"{name}.self.key", width, seen)
        linear(f"{name}.self.value", width, seen)
        linear(f"{name}.output.dense", width, width)
        norm(f"{name}.output.LayerNorm", width)

    shapes["cvem_align.offset_mask_dw.weight"] = (1408, 2, 3, 3)
    shapes["cvem_align.offset_mask_dw.bias"] = (1408,)
    linear("cvem_align.offset_mask", 112, 1408)
    linear("cvem_align.value_proj", 1408, 1408)
    linear("cvem_align.output_proj", 1408, 1408)
    linear("cvem_mlp.0", 1408, 4224)
    linear("cvem_mlp.2", 1408, 1408)
    linear("t5_proj", 2048, 768)
    shapes["attr_t"] = shapes["attr_b"] = ()
    for head in ("tag", "attr"):
        linear(f"{head}_vision_proj", 256, 768)
        linear(f"{head}_text_proj", 256, 1024)
        linear(f"{head}_fc", 1, 256)
        for number in range(2):
            layer = f"{head}_head.encoder.layer.{number}"
            attention(f"{layer}.crossattention", 256, 256)
            linear(f"{layer}.intermediate.dense", 1024, 256)
            linear(f"{layer}.output.dense", 256, 1024)
            norm(f"{layer}.output.LayerNorm", 256)
    norm("Qformer.bert.embeddings.LayerNorm", 768)
    for number in range(12):
        layer = f"Qformer.bert.encoder.layer.{number}"
        attention(f"{layer}.attention", 768, 768)
        if number % 2 == 0:
            attention(f"{layer}.crossattention", 768, 1408)
        linear(f"{layer}.intermediate_query.dense", 3072, 768)
        linear(f"{layer}.output_query.dense", 768, 3072)
        norm(f"{layer}.output_query.LayerNorm", 768)
    return shapes


def test_names_and_shapes_of_the_published_checkpoints() -> None:
    with torch.device("meta"):
        model = DynReferModel(
            DynReferConfig(
                vision=Blip2VisionConfig(),
                qformer=Blip2QFormerConfig(),
                language=T5Config(d_model=2048, num_layers=1),
                head=HeadSizes(),
            )
        )
        trained = {k: torch.empty(shape) for k, shape in published_shapes().items()}
    frozen = ("vision.", "language.", "query_tokens")
    ours = {
        key: tensor.shape
        for key, tensor in model.state_dict().items()
        if not key.startswith(frozen)
    }
    assert {key: tensor.shape for key, tensor in our_names(trained).items()} == ours


def test_sizes_are_read(folder: Path) -> None:
    """Fewer views, layers and queries than the public golden checkpoint has."""
    config = json.loads((folder / "config.json").read_text())
    trained = load_file(folder / "dynrefer_ckpt.safetensors")
    base = load_file(folder / "base_blip2.safetensors")
    width = base["ln_vision.bias"].shape[0]
    fused = trained["cvem_mlp.0.weight"]
    trained["cvem_mlp.0.weight"] = fused[:, : 2 * width].contiguous()
    prefix = "Qformer.bert.encoder.layer."
    last = max(int(k.split(".")[4]) for k in trained if k.startswith(prefix))
    for key in [key for key in trained if key.startswith(f"{prefix}{last}.")]:
        del trained[key]
    base["query_tokens"] = base["query_tokens"][:, :5].contiguous()
    depth = max(int(k.split(".")[2]) for k in base if ".blocks." in k)
    for key in [key for key in base if f".blocks.{depth}." in key]:
        del base[key]
    save_file(trained, folder / "dynrefer_ckpt.safetensors")
    save_file(base, folder / "base_blip2.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "num_views": 2}))
    smaller = load(folder)
    assert smaller.model.config.views == 2
    assert smaller.model.config.queries == 5
    assert smaller.model.config.qformer.num_hidden_layers == last
    assert smaller.model.config.vision.num_hidden_layers == depth
    assert all(caption.error is None for caption in smaller.caption(CLIPS))


def test_prefix_of_parallel_training(
    folder: Path, captioner: DynReferCaptioner
) -> None:
    path = folder / "dynrefer_ckpt.pth"
    state = torch.load(path, weights_only=True)["model"]
    torch.save({f"module.{key}": value for key, value in state.items()}, path)
    (folder / "dynrefer_ckpt.safetensors").unlink()
    ours = load_model(locate(folder)).state_dict()
    theirs = captioner.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def drop(file: str, key: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / file)
        del state[key]
        save_file(state, folder / file)

    return spoil


def resize(file: str, key: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / file)
        state[key] = torch.zeros(3)
        save_file(state, folder / file)

    return spoil


def without(*files: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return spoil


def truncated(file: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def pickled(folder: Path) -> None:
    (folder / "dynrefer_ckpt.safetensors").unlink()
    torch.save({"model": {"cem_memory": Path("x")}}, folder / "dynrefer_ckpt.pth")


def lora(folder: Path) -> None:
    path = folder / "dynrefer_ckpt.safetensors"
    key = "t5_model.base_model.model.lm_head.lora_A.weight"
    save_file({**load_file(path), key: torch.ones(2)}, path)


def two_checkpoints(folder: Path) -> None:
    shutil.copy(folder / "dynrefer_ckpt.pth", folder / "refcocog_ft.pth")


def more_views(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "num_views": config["num_views"] + 1})
    )


def no_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["t5"]
    (folder / "config.json").write_text(json.dumps(config))


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def configured(**values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in values.items():
            config[key] = {**config[key], **value} if key == "t5" else value
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def config_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def only_nan(folder: Path) -> None:
    path = folder / "dynrefer_ckpt.safetensors"
    state = {key: value * torch.nan for key, value in load_file(path).items()}
    save_file(state, path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(config_list, "config.json holds no JSON object", id="a list"),
        pytest.param(configured(vit_heads=0), "vit_heads is 0", id="0 heads"),
        pytest.param(configured(q_heads=7), "q_heads is 7", id="odd heads"),
        pytest.param(configured(q_heads="2"), "q_heads", id="heads as a text"),
        pytest.param(configured(text=[1]), "config.json", id="text as a list"),
        pytest.param(configured(text={"heads": 0}), "text.heads is 0", id="text heads"),
        pytest.param(configured(num_views="x"), "no use", id="views as a text"),
        pytest.param(
            configured(predict_kwargs=[5]), "predict_kwargs", id="settings as a list"
        ),
        pytest.param(configured(num_tags="many"), "num_tags", id="tags as a text"),
        pytest.param(
            configured(t5={"num_layers": 10**7}),
            "num_layers is 10000000",
            id="ten million layers",
        ),
        pytest.param(configured(t5={"num_heads": 0}), "num_heads is 0", id="T5 heads"),
        pytest.param(only_nan, "nothing but NaN", id="only NaN"),
        pytest.param(
            without("dynrefer_ckpt.pth", "dynrefer_ckpt.safetensors"),
            "vg1.2_5e.pth",
            id="no checkpoint",
        ),
        pytest.param(without("base_blip2.safetensors"), BLIP2, id="no base"),
        pytest.param(without("t5.safetensors"), BLIP2, id="no T5"),
        pytest.param(without("eva_clip_text.npz"), EVA_CLIP[1], id="no text tower"),
        pytest.param(without("tokenizer.json"), "tokenizer.json", id="no tokenizer"),
        pytest.param(without("tag_list.txt"), "tag_list.txt", id="no tags"),
        pytest.param(without("attributes.json"), "ovad2000.json", id="no attributes"),
        pytest.param(
            drop("dynrefer_ckpt.safetensors", "cvem_align.value_proj.bias"),
            "missing: align.value_proj.bias",
            id="a tensor missing",
        ),
        pytest.param(
            resize("dynrefer_ckpt.safetensors", "t5_proj.bias"),
            r"language_projection.bias is \(3,\), not",
            id="a tensor of another size",
        ),
        pytest.param(
            resize("dynrefer_ckpt.safetensors", "cvem_something"),
            "unexpected: cvem_something",
            id="a tensor too many",
        ),
        pytest.param(
            drop("dynrefer_ckpt.safetensors", "cem_memory"),
            "no DynRefer checkpoint",
            id="another model",
        ),
        pytest.param(
            drop("base_blip2.safetensors", "query_tokens"),
            "query_tokens",
            id="another base",
        ),
        pytest.param(
            drop("t5.safetensors", "lm_head.weight"), "lm_head", id="another T5"
        ),
        pytest.param(truncated("dynrefer_ckpt.safetensors"), "read", id="cut off"),
        pytest.param(truncated("eva_clip_text.npz"), "read", id="text tower cut off"),
        pytest.param(pickled, "more than tensors", id="pickle"),
        pytest.param(lora, "LoRA", id="LoRA"),
        pytest.param(two_checkpoints, "checkpoint=", id="two checkpoints"),
        pytest.param(more_views, "views", id="another number of views"),
        pytest.param(no_sizes, "T5's sizes", id="no sizes of the T5"),
        pytest.param(
            drop("base_blip2.safetensors", "visual_encoder.blocks.0.attn.v_bias"),
            "missing: .*qkv.bias",
            id="a bias missing",
        ),
        pytest.param(no_json, "config.json", id="broken config"),
    ],
)
def test_bad_folders(folder: Path, spoil: Callable[[Path], None], why: str) -> None:
    spoil(folder)
    with pytest.raises(WeightsError, match=why):
        load(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="OneDrive"):
        load(tmp_path / "nothing")


def test_one_of_two_checkpoints(folder: Path) -> None:
    two_checkpoints(folder)
    assert locate(folder, "refcocog_ft.pth").trained.name == "refcocog_ft.pth"


@pytest.mark.parametrize("tags", [["dog", "cat"], "file"])
def test_tag_list_of_another_length(folder: Path, tags: Any) -> None:
    if tags == "file":
        tags = folder / "tags.txt"
        tags.write_text("dog\ncat\n")
    with pytest.raises(WeightsError, match="the tag list has 2 names"):
        load(folder, tag_list=tags)


def test_the_folders_own_tag_list_of_another_length(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    count = len((folder / "tag_list.txt").read_text().splitlines())
    (folder / "config.json").write_text(json.dumps({**config, "num_tags": count}))
    load(folder)
    (folder / "tag_list.txt").write_text("dog\ncat")
    with pytest.raises(WeightsError, match=f"2 names.*trained with {count}"):
        load(folder)


def test_published_checkpoints_know_4585_tags(folder: Path) -> None:
    (folder / "dynrefer_ckpt.safetensors").unlink()
    (folder / "dynrefer_ckpt.pth").rename(folder / "refcocog_ft.pth")
    with pytest.raises(WeightsError, match="4585"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        pytest.param({"tasks": ["poems"]}, OptionError, "poems", id="unknown task"),
        pytest.param({"tasks": []}, OptionError, "tasks", id="no task"),
        pytest.param({"dtype": "float16"}, OptionError, "float16", id="half"),
        pytest.param({"dtype": "long"}, OptionError, "long", id="no float"),
        pytest.param({"contexts": "depth"}, OptionError, "depth", id="no prior"),
        pytest.param({"contexts": (0, 0.1)}, BackendError, "views", id="two contexts"),
        pytest.param({"contexts": (0.1,) * 3}, OptionError, "first", id="bad contexts"),
        pytest.param({"class_names": "dog"}, OptionError, "names", id="one text"),
        pytest.param({"checkpoint": "x.pth"}, WeightsError, "x.pth", id="no such file"),
        pytest.param({"device": "cuda:99"}, BackendError, "CUDA", id="no such device"),
    ],
)
def test_bad_options(
    published: Path, options: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        load(published, **options)


def test_generation_settings(published: Path) -> None:
    quick = load(published, num_beams=1, max_new_tokens=4)
    [caption] = quick.caption(CLIPS[:1])
    assert 1 <= caption.tokens <= 4


def test_text_tower_of_another_file(folder: Path) -> None:
    np.savez(folder / "eva_clip_text.npz", **{"text.other": np.ones(3)})
    with pytest.raises(WeightsError, match=EVA_CLIP[1]):
        load_text_tower(locate(folder))
