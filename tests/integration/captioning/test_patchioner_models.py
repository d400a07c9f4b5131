"""Our models against independent ones with the same random weights."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.captioning.patchioner import memory as memory_module
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.gpt2 import Gpt2Config
from fiftyone_regioncap.captioning.patchioner.memory import (
    TextMemory,
    build_memory,
    memory_file_name,
)
from fiftyone_regioncap.captioning.patchioner.projection import (
    PUBLISHED_SHA256,
    TextProjection,
)
from fiftyone_regioncap.captioning.patchioner.text import ClipTextEncoder
from fiftyone_regioncap.captioning.patchioner.vision import (
    ClipTower,
    DinoTower,
    preprocess,
)
from fiftyone_regioncap.core.errors import PromptError, WeightsError
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary
from fiftyone_regioncap.system import assets
from tests.support import DATA

PATCHIONER = DATA / "patchioner"
VECTORS: Mapping[str, Any] = json.loads((PATCHIONER / "vectors.json").read_text())
CAPTIONS = [f"a {word} on the grass" for word in ("dog", "cat", "ball", "car", "man")]


@pytest.fixture(scope="module")
def vocabulary() -> ClipVocabulary:
    return ClipVocabulary.load()


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- the towers ----------------------------------------------------------------------


def dino(hidden: int = 48, layers: int = 2, heads: int = 3, side: int = 70) -> Any:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
        patch_size=14,
        initializer_range=0.3,
    )
    return Dinov2WithRegistersModel(config).eval()


@pytest.mark.parametrize("side", [70, 98, 90])  # 90: not filled by patches
def test_tower_is_transformers_own(side: int) -> None:
    model = dino()
    frame = image(50, 80)
    (seen,) = DinoTower(model, side=side).encode([frame])

    # Attention by the closed form over whole vectors, from a hook on the model's own
    # projections instead of hidden states.
    caught: dict[str, torch.Tensor] = {}
    block = model.encoder.layer[-1].attention
    hooks = [
        getattr(block, name).register_forward_hook(
            lambda module, given, output, name=name: caught.update({name: output})
        )
        for name in ("q_proj", "k_proj")
    ]
    with torch.no_grad():
        output = model(preprocess(frame, side)[None])
    for hook in hooks:
        hook.remove()
    tokens = output.last_hidden_state[0]
    torch.testing.assert_close(seen.cls, output.pooler_output[0])
    torch.testing.assert_close(seen.registers, tokens[1:5])
    torch.testing.assert_close(seen.patches, tokens[5:])
    dots = caught["k_proj"][0, 5:] @ caught["q_proj"][0, 0]
    closed = torch.softmax(dots * (0.125 / 16), dim=0).numpy()
    np.testing.assert_allclose(seen.attention.ravel(), closed, rtol=1e-4)
    count = side // 14
    assert seen.attention.shape == (count, count)
    assert len(seen.patches) == count * count


def test_frames_of_any_sizes_in_one_batch() -> None:
    tower = DinoTower(dino(), side=70, batch_size=2)
    frames = [image(50, 80, 1), image(90, 30, 2), image(20, 20, 3)]
    together = tower.encode(frames)
    for frame, seen in zip(frames, together, strict=True):
        (alone,) = tower.encode([frame])
        torch.testing.assert_close(seen.patches, alone.patches, atol=1e-4, rtol=1e-4)
        assert (seen.grid.height, seen.grid.width) == frame.shape[:2]


@pytest.mark.parametrize("side", [64, 96])  # 96: position embeddings are resampled
def test_clip_tower_is_transformers_own(side: int) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    tower = ClipTower(model, side=side)
    (seen,) = tower.encode([image(50, 80)])
    from fiftyone_regioncap.captioning.patchioner.vision import CLIP_MEAN, CLIP_STD

    pixels = preprocess(image(50, 80), side, mean=CLIP_MEAN, std=CLIP_STD)[None]
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).image_embeds[0]
    torch.testing.assert_close(seen.cls, expected)
    assert (
        seen.patches.shape
        == ((side // 16) ** 2, 24)
        == (
            seen.grid.rows**2,
            tower.width,
        )
    )
    assert seen.attention is None


# --- the decoder ---------------------------------------------------------------------


def test_decoder_is_a_plain_gpt2(vocabulary: ClipVocabulary) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=48, n_layer=3, n_head=4, n_positions=40, initializer_range=0.3
    )
    theirs = GPT2LMHeadModel(config).eval()
    state = {f"decoder.{name}": value for name, value in theirs.state_dict().items()}
    state["clip_project.model.0.weight"] = torch.randn(48, 20)
    state["clip_project.model.0.bias"] = torch.randn(48)
    ours = PrefixDecoder.from_state_dict(state, heads=4)
    prefix = torch.randn(7, 20)
    generated = ours.generate(prefix, end_id=vocabulary.end_id, early_stop=False)

    # The reference's way: no cache, the whole sequence again at every step.
    embeddings = ours.clip_project(prefix)[:, None]
    ids: list[torch.Tensor] = []
    log_probabilities = []
    with torch.no_grad():
        for _ in range(30):
            logits = theirs(inputs_embeds=embeddings).logits[:, -1]
            ids.append(logits.argmax(dim=1))
            log_probabilities.append(logits.log_softmax(1).amax(dim=1))
            step = theirs.transformer.wte(ids[-1])[:, None]
            embeddings = torch.cat([embeddings, step], dim=1)
    assert torch.equal(generated.ids, torch.stack(ids, dim=1))
    torch.testing.assert_close(
        generated.log_probabilities,
        torch.stack(log_probabilities, dim=1),
        atol=1e-4,
        rtol=1e-4,
    )
    scored = ours.logits(prefix, generated.ids).log_softmax(-1)
    chosen = scored.gather(2, generated.ids[..., None])[..., 0]
    torch.testing.assert_close(
        chosen, generated.log_probabilities, atol=1e-4, rtol=1e-4
    )


def ending_decoder(end_id: int, end: int, steps: int) -> PrefixDecoder:
    """A decoder that writes 7 at every step but one, where it writes the end token."""
    decoder = PrefixDecoder(1, Gpt2Config(steps, 1, 1, steps)).eval()
    model = decoder.decoder.transformer
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        model.ln_f.weight.fill_(1)
        model.ln_f.bias.fill_(1)
        model.wpe.weight.copy_(torch.eye(steps))  # tells the steps apart
        model.wte.weight[7] = 0.1
        model.wte.weight[end_id, end] = 1
    return decoder


@pytest.mark.parametrize(("step", "length"), [(0, 1), (4, 5), (29, 30)])
def test_decoding_stops_when_all_have_ended(step: int, length: int) -> None:
    decoder = ending_decoder(end_id=9, end=step, steps=30)
    generated = decoder.generate(torch.ones(3, 1), end_id=9)
    assert generated.ids.shape == (3, length)
    assert generated.lengths.tolist() == [length] * 3
    whole = decoder.generate(torch.ones(3, 1), end_id=9, early_stop=False)
    assert whole.ids.shape == (3, 30)
    assert whole.lengths.tolist() == [length] * 3
    assert torch.equal(whole.ids[:, :length], generated.ids)


def test_confidence_ends_with_the_caption() -> None:
    torch.manual_seed(0)
    decoder = PrefixDecoder(4, Gpt2Config(8, 1, 2, 30, 20)).eval()
    whole = decoder.generate(torch.randn(5, 4), end_id=3, early_stop=False)
    for row, length in enumerate(whole.lengths.tolist()):
        expected = whole.log_probabilities[row, :length].exp().mean()
        assert whole.confidence()[row].item() == pytest.approx(expected.item())


# --- the memory ----------------------------------------------------------------------


def dense_projection(rows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """The formula over everything at once."""
    rows = rows[rows.norm(dim=1) > 0].double()
    queries = queries.double() / queries.double().norm(dim=1, keepdim=True)
    unit = rows / rows.norm(dim=1, keepdim=True)
    return torch.softmax(queries @ unit.T / 0.01, dim=1) @ rows


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    width=st.integers(1, 9),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 999),
)
def test_chunks_don_t_change_the_projection(
    count: int, width: int, chunk: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator) * 5
    rows[torch.rand(count, generator=generator) < 0.3] = 0
    rows[0] = 1.0
    queries = torch.randn(4, width, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_module, "ROWS_AT_ONCE", chunk)
        memory = TextMemory(rows)
        found = memory.project(queries, normalize=False)
        cosines, numbers = memory.search(queries, 3)
    expected = dense_projection(rows, queries)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    kept = min(3, len(memory))
    assert cosines.shape == numbers.shape == (4, kept)
    assert (rows[numbers].norm(dim=2) > 0).all()
    assert (cosines.diff(dim=1) <= 0).all()


def test_zero_rows_don_t_shift_the_texts() -> None:
    rows = torch.eye(4)
    rows[1] = 0
    memory = TextMemory(rows, ["a", "nothing", "c", "d"])
    assert memory.nearest_texts(torch.eye(4)[[0, 2, 3]]) == ["a", "c", "d"]
    shifted = memory.nearest_texts(torch.eye(4)[[0, 2, 3]], skip_zero_rows=True)
    assert shifted == ["a", "nothing", "c"]


def test_a_memory_file_is_loaded_once_and_mapped(tmp_path: Path) -> None:
    path = tmp_path / memory_file_name(len(CAPTIONS))
    table = torch.randn(len(CAPTIONS), 6)
    build_memory(path, CAPTIONS, lambda texts: table[: len(texts)], batch_size=99)
    with h5py.File(path) as file:
        assert sorted(file) == ["coco_captions-embeddings", "coco_captions-text"]
    memory = TextMemory.load(path)
    assert TextMemory.load(path) is memory
    assert list(memory.texts) == CAPTIONS
    assert isinstance(memory_module._read(path)[0], np.memmap)
    torch.testing.assert_close(memory.embeddings, table)
    before = path.read_bytes()
    memory.project(table)
    assert path.read_bytes() == before
    # A new file under the same name is another memory.
    build_memory(path, CAPTIONS[:3], lambda texts: table[: len(texts)])
    assert len(TextMemory.load(path)) == 3


@pytest.mark.parametrize(
    "storage", [{"chunks": (2, 6)}, {"compression": "gzip"}, {"dtype": np.float16}]
)
def test_memory_files_stored_otherwise(tmp_path: Path, storage: Any) -> None:
    table = np.arange(30, dtype=storage.get("dtype", np.float32)).reshape(5, 6)
    path = tmp_path / "memory.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x-embeddings", data=table, **storage)
    memory = TextMemory.load(path)
    np.testing.assert_array_equal(memory.embeddings, table.astype(np.float32))
    with pytest.raises(WeightsError, match="no texts"):
        memory.nearest_texts(torch.ones(1, 6))


def test_a_failed_build_leaves_the_old_memory(tmp_path: Path) -> None:
    path = tmp_path / "memory.h5"
    build_memory(path, CAPTIONS, lambda texts: torch.ones(len(texts), 3))
    before = path.read_bytes()

    def fails(texts: Any) -> torch.Tensor:
        raise PromptError("too long")

    with pytest.raises(PromptError):
        build_memory(path, CAPTIONS, fails)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["memory.h5"]
    with pytest.raises(WeightsError, match="no caption"):
        build_memory(path, [], fails)


def test_half_precision_is_near() -> None:
    torch.manual_seed(0)
    rows, queries = torch.randn(500, 64) * 8, torch.randn(20, 64)
    exact = TextMemory(rows).project(queries)
    half = TextMemory(rows, dtype=torch.float16).project(queries)
    cosines = torch.nn.functional.cosine_similarity(exact, half)
    assert cosines.min() > 0.999


def test_index_finds_what_matters(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    centers = torch.randn(60, 32)
    rows = centers.repeat_interleave(50, 0) + 0.3 * torch.randn(3000, 32)
    rows = rows * (1 + torch.rand(3000, 1))
    rows[2900:] = 0  # as the published file is padded
    queries = centers[:50] + 0.3 * torch.randn(50, 32)
    for raw in (True, False):
        memory = TextMemory(rows, raw_values=raw)
        memory.use_index(tmp_path / f"{raw}.faiss")
        agreement = memory.agreement(queries)
        assert (agreement > 0.999).float().mean() >= 0.95
        again = TextMemory(rows, raw_values=raw)
        again.use_index(tmp_path / f"{raw}.faiss")  # read, not built
        torch.testing.assert_close(again.project(queries), memory.project(queries))
        memory.use_all_rows()
        assert (memory.agreement(queries) > 0.99999).all()
    with pytest.raises(WeightsError, match="delete it"):
        TextMemory(rows[:10]).use_index(tmp_path / "True.faiss")


def test_meacap_folders(tmp_path: Path) -> None:
    (tmp_path / "memory_captions.json").write_text(json.dumps(CAPTIONS))
    with pytest.raises(WeightsError, match=r"memory_clip_embeddings\.pt is missing"):
        TextMemory.load_folder(tmp_path)
    vectors = torch.randn(len(CAPTIONS), 5)
    torch.save(vectors, tmp_path / "memory_clip_embeddings.pt")
    assert TextMemory.load_folder(tmp_path).nearest_texts(vectors) == CAPTIONS


# --- text ----------------------------------------------------------------------------


def test_vocabulary(vocabulary: ClipVocabulary) -> None:
    for token, number in VECTORS["tokens"].items():
        assert vocabulary.encode(token) == [number]
    assert (len(vocabulary), vocabulary.start_id, vocabulary.end_id) == (
        49408,
        49406,
        49407,
    )
    ids = vocabulary.tokenize(["A dog.", ""])
    assert ids.shape == (2, 77)
    assert ids[1, :3].tolist() == [49406, 49407, 0]
    assert vocabulary.decode(ids[0, 1:4]) == "a dog . "


@given(text=st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P"])))
def test_texts_survive_the_vocabulary(vocabulary: ClipVocabulary, text: str) -> None:
    import unicodedata

    spoken = vocabulary.decode(vocabulary.encode(text))
    expected = unicodedata.normalize("NFC", text).lower()
    assert spoken.replace(" ", "") == expected.replace(" ", "")


def test_vocabulary_from_a_folder(tmp_path: Path, vocabulary: ClipVocabulary) -> None:
    vocabulary._tokenizer.save_pretrained(tmp_path)
    again = ClipVocabulary.load(tmp_path)
    text = "a dog's ball, on grass"
    assert again.encode(text) == vocabulary.encode(text)
    with pytest.raises(WeightsError, match="no CLIP vocabulary"):
        ClipVocabulary.load(tmp_path / "nothing")
    (tmp_path / "bad.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(WeightsError, match="gzip"):
        ClipVocabulary.load(tmp_path / "bad.txt.gz")
    published = assets.fetch("bpe_simple_vocab_16e6.txt.gz")
    assert gzip.decompress(published.read_bytes())


def test_text_tower_is_transformers_own(vocabulary: ClipVocabulary) -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tower = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            projection_dim=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=vocabulary.start_id,
            eos_token_id=vocabulary.end_id,
        )
    ).eval()
    encode = ClipTextEncoder(tower, vocabulary, batch_size=2)
    ids = torch.from_numpy(vocabulary.tokenize(CAPTIONS))
    with torch.no_grad():
        expected = tower(input_ids=ids).text_embeds
    torch.testing.assert_close(encode(CAPTIONS), expected)
    projection = TextProjection(12, 20)
    projected = ClipTextEncoder(tower, vocabulary, projection)(CAPTIONS)
    torch.testing.assert_close(projected, projection(expected))


# --- the projection ------------------------------------------------------------------


def save(projection: TextProjection, path: Path) -> Path:
    torch.save(dict(projection.state_dict()), path)
    return path


def test_projections_that_are_not_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    own = save(TextProjection(4, 6), tmp_path / "own.pth")
    TextProjection.load(own)
    assert not recwarn.list  # somebody's own training
    named = save(TextProjection(4, 6), tmp_path / "vitb_mlp_infonce.pth")
    with pytest.warns(UserWarning, match="is not the published projection"):
        TextProjection.load(named)
    module = "fiftyone_regioncap.captioning.patchioner.projection"
    digest = assets.sha256(named)[:8]
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.REPLACED_SHA256", digest)
        with pytest.warns(UserWarning, match="replaced the published one"):
            TextProjection.load(named)
    recwarn.clear()
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.PUBLISHED_SHA256", digest)
        TextProjection.load(named)
    assert not recwarn.list


def test_bad_projections(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pth is missing"):
        TextProjection.load(tmp_path / "nothing.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no 'linear_layer"):
        TextProjection.load(tmp_path / "other.pth")
    state = dict(TextProjection(4, 6).state_dict())
    state["hidden_layers.0.weight"] = torch.ones(5, 5)
    torch.save(state, tmp_path / "shape.pth")
    with pytest.raises(WeightsError, match="another shape"):
        TextProjection.load(tmp_path / "shape.pth")


@pytest.mark.parametrize("which", ["published", "replaced"])
def test_published_projection_vectors(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    case, name = VECTORS["projection"][which], VECTORS["projection"]["file"]
    given = os.environ.get("REGIONCAP_WEIGHTS")
    path = Path(given or tmp_path) / name
    if not path.is_file() or not assets.sha256(path).startswith(case["sha256"]):
        pytest.skip(f"no {name} of sha256 {case['sha256']}... in REGIONCAP_WEIGHTS")
    assert VECTORS["projection"]["published"]["sha256"] == PUBLISHED_SHA256
    copy = shutil.copy(path, tmp_path / "copy.pth")
    projection = TextProjection.load(copy)
    first = projection.linear_layer.weight.norm().item()
    second = projection.hidden_layers[0].weight.norm().item()
    assert [first, second] == pytest.approx(case["weight_norms"], abs=1e-3)
    direction = torch.linspace(-1, 1, 512)
    vector = projection(direction[None] * 10 / direction.norm())[0]
    assert vector.norm().item() == pytest.approx(case["norm"], abs=1e-4)
    assert vector[:5].tolist() == pytest.approx(case["first"], abs=1e-4)
    if case["sum"] is not None:
        assert math.fsum(vector.tolist()) == pytest.approx(case["sum"], abs=1e-3)
