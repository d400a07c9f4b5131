"""DAM at other shapes than the published one, and what it refuses to load."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from fiftyone_regioncap.captioning.dam.config import AdapterConfig, DAMConfig
from fiftyone_regioncap.captioning.dam.generation import Request
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.core.errors import (
    BackendError,
    LicenseError,
    PromptError,
    WeightsError,
)
from fiftyone_regioncap.models.sampling import Sampling
from tests.support.dam import (
    IDLE,
    TINY,
    embeddings,
    first_logits,
    generate,
    run,
    step_logits,
    stream,
    write_checkpoint,
)


def llm(**changes: object) -> LlamaConfig:
    return LlamaConfig(**{**TINY.llm.to_dict(), **changes})


SHAPES: dict[str, tuple[DAMConfig, int]] = {
    "even grid, grouped queries": (TINY, 1),
    "odd grid, one head for each query": (
        replace(
            TINY,
            image=replace(TINY.image, size=126, pad=True),
            llm=llm(num_key_value_heads=4),
        ),
        1,
    ),
    "tied embeddings in three shards": (
        replace(TINY, llm=llm(tie_word_embeddings=True)),
        3,
    ),
    "no gates, every layer used, scaled positions": (
        replace(
            TINY,
            used_layers=TINY.vision.layers,
            adapters=AdapterConfig(gated=False, masked=True, swapped=True),
            llm=llm(
                rope_parameters={
                    "rope_type": "linear",
                    "factor": 2.0,
                    "rope_theta": 1e4,
                }
            ),
        ),
        2,
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def dam(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DAM:
    torch.set_num_threads(1)
    config, shards = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, config, llm_shards=shards)
    return DAM.from_pretrained(folder)


def prompts(dam: DAM, count: int = 9) -> tuple[list[torch.Tensor], list[str]]:
    """Objects and questions of different lengths."""
    rng = np.random.default_rng(0)
    batch, queries = [], []
    for number in range(count):
        image = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)
        mask = np.zeros((90, 120), dtype=bool)
        mask[10 + number : 40, 20 : 50 + number] = True
        images = 1 + 2 * (number % 2)
        views, _ = dam.prepare(image, mask)
        batch.append(torch.stack([views] * images))
        queries.append("<image>" * images + "\nwhat is it" + " again" * number)
    return batch, queries


class TestGeneration:
    def test_a_batch_says_what_each_prompt_says_alone(self, dam: DAM) -> None:
        batch, queries = prompts(dam)
        together = generate(dam, batch, queries, 20)
        for views, query, ids in zip(batch, queries, together.ids, strict=True):
            assert generate(dam, [views], [query], 20).ids == [ids]

    def test_the_cache_changes_nothing(self, dam: DAM) -> None:
        batch, queries = prompts(dam, 4)
        for views, query, ids in zip(
            batch, queries, generate(dam, batch, queries, 20).ids, strict=True
        ):
            logits = step_logits(dam, views, query, ids[:-1])
            assert logits.argmax(dim=-1).tolist() == ids

    def test_transformers_says_the_same(self, dam: DAM) -> None:
        batch, queries = prompts(dam, 4)
        ours = generate(dam, batch, queries, 20).ids
        for views, query, ids in zip(batch, queries, ours, strict=True):
            theirs = dam.llm.generate(
                inputs_embeds=embeddings(dam, views, query)[None],
                max_new_tokens=20,
                do_sample=False,
                eos_token_id=dam.tokenizer.eos,
                pad_token_id=0,
            )
            assert theirs[0].tolist() == ids

    @pytest.mark.parametrize("rows", [1, 2, 4])
    def test_rows_are_filled_again_as_answers_end(self, dam: DAM, rows: int) -> None:
        batch, queries = prompts(dam)
        whole = generate(dam, batch, queries, 20).ids
        requests = [
            Request(number, embeddings(dam, views, query), 3 + 2 * number)
            for number, (views, query) in enumerate(zip(batch, queries, strict=True))
        ]
        streamed: dict[object, list[int]] = {}
        answers = {}
        for event in run(dam, requests, rows):
            streamed.setdefault(event.key, []).append(event.token)
            if event.answer is not None:
                answers[event.key] = event.answer.ids
        expected = {n: ids[: 3 + 2 * n] for n, ids in enumerate(whole)}
        assert answers == streamed == expected

    def test_steps_ahead_of_the_known_tokens(
        self, dam: DAM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a GPU does, as far as a CPU can show it."""
        batch, queries = prompts(dam)
        whole = generate(dam, batch, queries, 16).ids
        engine = dam.engine(4)
        engine._lag, engine._round_up = 1, True
        monkeypatch.setitem(IDLE, dam, engine)
        requests = [
            Request(number, embeddings(dam, views, query), 1 + 15 * (number % 2))
            for number, (views, query) in enumerate(zip(batch, queries, strict=True))
        ]
        answers = {}
        for event in run(dam, requests, 4):
            if event.answer is not None:
                answers[event.key] = event.answer.ids
        assert answers == {n: ids[: 1 + 15 * (n % 2)] for n, ids in enumerate(whole)}

    def test_streams_beside_each_other(self, dam: DAM) -> None:
        batch, queries = prompts(dam, 2)
        expected = generate(dam, batch, queries, 8).texts
        first, second = (
            stream(dam, views, query, 8)
            for views, query in zip(batch, queries, strict=True)
        )
        texts = ["", ""]
        for one, two in zip(first, second, strict=True):
            texts = [texts[0] + one, texts[1] + two]
        assert [text.strip() for text in texts] == expected

    def test_a_seed_fixes_a_text_whatever_is_beside_it(self, dam: DAM) -> None:
        batch, queries = prompts(dam, 5)
        sampling = [Sampling(0.8, 50, 0.9, seed) for seed in range(5)]
        together = generate(dam, batch, queries, 12, sampling=sampling).ids
        alone = [
            generate(dam, [views], [query], 12, sampling=one).ids[0]
            for views, query, one in zip(batch, queries, sampling, strict=True)
        ]
        assert together == alone
        other = generate(dam, batch, queries, 12, sampling=Sampling(0.8, 50, 0.9, 77))
        assert other.ids != together

    def test_an_abandoned_stream_leaves_nothing_behind(self, dam: DAM) -> None:
        batch, queries = prompts(dam, 2)
        expected = generate(dam, batch[:1], queries[:1], 8)
        pieces = stream(dam, batch[1], queries[1], 8)
        next(pieces)
        pieces.close()
        assert generate(dam, batch[:1], queries[:1], 8) == expected

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_stays_close(
        self, dam: DAM, dtype: torch.dtype, tmp_path: Path
    ) -> None:
        write_checkpoint(tmp_path, dam.config)
        exact = DAM.from_pretrained(tmp_path)
        half = DAM.from_pretrained(tmp_path, dtype=dtype)
        batch, queries = prompts(exact, 1)
        ours = first_logits(half, batch[0], queries[0])
        theirs = first_logits(exact, batch[0], queries[0])
        assert (ours - theirs).abs().mean() < 0.1 * theirs.std()
        assert generate(half, batch, queries, 4).ids[0]

    @pytest.mark.parametrize(("bits", "error"), [("8bit", 0.05), ("4bit", 0.5)])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_fewer_bits_stay_close(
        self, dam: DAM, bits: str, error: float, tmp_path: Path
    ) -> None:
        write_checkpoint(tmp_path, dam.config)
        exact = DAM.from_pretrained(tmp_path)
        if importlib.util.find_spec("bitsandbytes") is None:
            with pytest.raises(BackendError, match="pip install bitsandbytes"):
                DAM.from_pretrained(tmp_path, quantization=bits)
            return
        small = DAM.from_pretrained(tmp_path, quantization=bits)
        batch, queries = prompts(exact, 1)
        ours = first_logits(small, batch[0], queries[0])
        theirs = first_logits(exact, batch[0], queries[0])
        assert 0 < (ours - theirs).abs().mean() < error * theirs.std()

    def test_a_prompt_longer_than_the_context_is_refused(self, dam: DAM) -> None:
        batch, _ = prompts(dam, 1)
        with pytest.raises(PromptError, match="shorten the text"):
            generate(dam, batch, ["<image>\n" + "why " * 2000], 4)

    def test_answers_end_with_the_context(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, replace(TINY, context=320))
        dam = DAM.from_pretrained(tmp_path)
        batch, queries = prompts(dam, 1)
        prompt = len(embeddings(dam, batch[0], queries[0]))
        ids, _ = generate(dam, batch, queries, 4000, ignore_stop=True)
        assert len(ids[0]) == 320 - prompt


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, llm_shards=2)
    return tmp_path


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_tensor(folder: Path) -> None:
    path = folder / "vision_tower" / "model.safetensors"
    state = load_file(path)
    del state["vision_model.embeddings.mask_patch_embedding.bias"]
    save_file(state, path)


def add_tensor(folder: Path) -> None:
    path = folder / "mm_projector" / "model.safetensors"
    save_file(load_file(path) | {"layers.9.weight": torch.zeros(1)}, path)


def widen_tensor(folder: Path) -> None:
    path = folder / "context_provider" / "model.safetensors"
    state = load_file(path)
    state["context_provider_module.layers.0.attn_factor"] = torch.zeros(2)
    save_file(state, path)


def truncate(folder: Path) -> None:
    path = folder / "mm_projector" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "a missing tensor": (drop_tensor, "missing: .*mask_patch_embedding.bias"),
    "a left-over tensor": (add_tensor, "unexpected: layers.9.weight"),
    "a tensor of another shape": (widen_tensor, r"attn_factor is \(2,\), not \(1,\)"),
    "half a file": (truncate, "no whole safetensors file"),
    "a missing shard": (
        lambda f: (f / "llm" / "model-00002-of-00002.safetensors").unlink(),
        "model-00002-of-00002.safetensors missing of 2",
    ),
    "a missing tokenizer": (
        lambda f: (f / "llm" / "tokenizer.model").unlink(),
        "tokenizer",
    ),
    "a tokenizer of another kind": (
        lambda f: (f / "llm" / "tokenizer.model").write_bytes(b"{}"),
        "no sentencepiece model",
    ),
    "another model": (lambda f: edit(f / "config.json", llm_cfg=None), "not a DAM"),
    "broken JSON": (lambda f: (f / "config.json").write_text("{"), "JSON"),
    "a mask encoder": (
        lambda f: edit(f / "config.json", mask_encoder_cfg={"a": 1}),
        "mask encoder",
    ),
    "a layer that is not there": (
        lambda f: edit(f / "config.json", mm_vision_select_layer=-9),
        "does not exist",
    ),
    "another projector": (
        lambda f: edit(f / "mm_projector" / "config.json", mm_projector_type="linear"),
        "mlp_downsample",
    ),
    "another kind of adapter": (
        lambda f: edit(
            f / "context_provider" / "config.json", context_provider_type="x"
        ),
        "cross_attn_end_to_all",
    ),
    "adapters at some layers": (
        lambda f: edit(
            f / "context_provider" / "config.json", context_provider_layer_indices=[0]
        ),
        "must be null",
    ),
    "fewer adapters than layers": (
        lambda f: edit(f / "context_provider" / "config.json", num_hidden_layers=2),
        "must agree",
    ),
}


class TestLoading:
    @pytest.mark.parametrize("name", BROKEN)
    def test_a_bad_checkpoint_says_what_is_wrong(
        self, checkpoint: Path, name: str
    ) -> None:
        damage, message = BROKEN[name]
        damage(checkpoint)
        with pytest.raises(WeightsError, match=message):
            DAM.from_pretrained(checkpoint)

    def test_what_is_never_used_may_be_absent(self, checkpoint: Path) -> None:
        path = checkpoint / "vision_tower" / "model.safetensors"
        state = load_file(path)
        state["vision_model.post_layernorm.weight"] = torch.zeros(32)
        state["vision_model.encoder.layers.2.mlp.fc1.bias"] = torch.zeros(64)
        save_file(state, path)
        assert DAM.from_pretrained(checkpoint)

    def test_a_path_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="no folder"):
            DAM.from_pretrained(tmp_path / "nothing")

    def test_the_license_comes_before_the_download(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable in ("REGIONCAP_CONFIG", "REGIONCAP_CACHE", "HF_HOME"):
            monkeypatch.setenv(variable, str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(LicenseError, match="commercial"):
            DAM.from_pretrained("nvidia/DAM-3B")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SHAPES)
def test_a_gpu_says_what_a_cpu_says(name: str, tmp_path: Path) -> None:
    """CUDA graphs, steps ahead and all, in float32."""
    config, shards = SHAPES[name]
    write_checkpoint(tmp_path, config, llm_shards=shards)
    cpu = DAM.from_pretrained(tmp_path)
    gpu = DAM.from_pretrained(tmp_path, device="cuda")
    batch, queries = prompts(cpu)
    expected = generate(cpu, batch, queries, 20)
    assert generate(gpu, batch, queries, 20) == expected
    requests = [
        Request(number, embeddings(gpu, views, query), 3 + 2 * number)
        for number, (views, query) in enumerate(zip(batch, queries, strict=True))
    ]
    answers = {}
    for event in run(gpu, requests, 4):
        if event.answer is not None:
            answers[event.key] = event.answer.ids
    assert answers == {n: ids[: 3 + 2 * n] for n, ids in enumerate(expected.ids)}
