from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import (
    INDEX,
    build_config,
    fetch_checkpoint,
    load_strict,
    read_json,
    read_tensors,
    rename,
    revision_of,
)

WEIGHTS = {"one.weight": torch.ones(2, 3), "two": torch.arange(4)}

CODE = type("Code", (), {"__reduce__": lambda self: (print, ("it ran",))})


class Tied(nn.Module):
    """Two layers with one weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def shards(folder: Path) -> Path:
    save_file({"one.weight": WEIGHTS["one.weight"]}, folder / "a.safetensors")
    save_file({"two": WEIGHTS["two"]}, folder / "b.safetensors")
    index = {"one.weight": "a.safetensors", "two": "../somewhere/b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


def whole(folder: Path) -> Path:
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


def saved(name: str, content: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        torch.save(content, folder / name)
        return folder / name

    return save


def arrays(folder: Path) -> Path:
    np.savez(folder / "a.npz", **{name: w.numpy() for name, w in WEIGHTS.items()})
    return folder / "a.npz"


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(whole, id="folder"),
        pytest.param(shards, id="shards"),
        pytest.param(lambda f: whole(f) / "model.safetensors", id="safetensors"),
        pytest.param(arrays, id="npz"),
        pytest.param(saved("a.pt", WEIGHTS), id="state dict"),
        pytest.param(saved("a.pth", {"model": WEIGHTS, "epoch": 3}), id="checkpoint"),
        pytest.param(saved("a.bin", {"state_dict": WEIGHTS}), id="wrapped"),
    ],
)
def test_formats(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    read = dict(read_tensors(path))
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [name for name, _ in read_tensors(path, "two".__eq__)] == ["two"]


def cut_off(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def cut(folder: Path) -> Path:
        path = write(folder)
        path.write_bytes(path.read_bytes()[:-100])
        return path

    return cut


def holding(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder if name == INDEX else folder / name

    return write


@pytest.mark.parametrize(
    ("write", "says"),
    [
        pytest.param(lambda f: f, "model.safetensors missing of 1", id="empty"),
        pytest.param(lambda f: f / "a.pt", "is missing", id="no file"),
        pytest.param(lambda f: f / "a.safetensors", "is missing", id="no safetensors"),
        pytest.param(cut_off(saved("a.pt", WEIGHTS)), "cannot be read", id="cut off"),
        pytest.param(cut_off(arrays), "cannot be read", id="npz cut off"),
        pytest.param(
            cut_off(lambda f: whole(f) / "model.safetensors"),
            "no whole safetensors",
            id="safetensors cut off",
        ),
        pytest.param(holding("a.pt", "<html>"), "cannot be read", id="no file of it"),
        pytest.param(saved("a.pt", {"a": CODE()}), "more than tensors", id="code"),
        pytest.param(saved("a.pt", [1, 2]), "no tensors by name", id="a list"),
        pytest.param(holding(INDEX, "[]"), "no JSON object", id="index is a list"),
        pytest.param(holding(INDEX, "{}"), "weight_map", id="index without a map"),
        pytest.param(
            holding(INDEX, '{"weight_map": {"a": "x.safetensors"}}'),
            "x.safetensors missing of 1",
            id="no shard",
        ),
    ],
)
def test_files_that_are_no_checkpoint(
    tmp_path: Path,
    write: Callable[[Path], Path],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(WeightsError, match=says) as error:
        dict(read_tensors(write(tmp_path)))
    # PyTorch advises to run what is in the file.
    shown: BaseException | None = error.value
    while shown is not None:
        assert "weights_only" not in str(shown)
        shown = shown.__cause__
    assert not capsys.readouterr().out


def test_what_fits_is_loaded() -> None:
    module = on_meta(Tied)
    weight = torch.arange(9.0, dtype=torch.float64).view(3, 3)
    tensors = {"a.second.weight": weight, "a.count": torch.tensor(7), "extra": weight}
    load_strict(
        module, tensors.items(), "x", prefix="a.", unused=lambda name: name == "extra"
    )
    assert module.first.weight is module.second.weight
    assert module.first.weight.dtype == torch.float32
    assert torch.equal(module.first.weight.double(), weight)
    assert int(module.count) == 7 and not module.training
    assert not any(weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"bias": None}, "missing: bias", id="missing"),
        pytest.param({"other": torch.ones(1)}, "unexpected: other", id="unexpected"),
        pytest.param(
            {"bias": torch.ones(3)}, r"shape: bias is \(3,\), not \(2,\)", id="shape"
        ),
        pytest.param(
            {"bias": torch.full((2,), torch.nan)}, "nothing but NaN: bias", id="NaN"
        ),
    ],
)
def test_what_does_not_fit(change: dict[str, Tensor | None], says: str) -> None:
    tensors = {"weight": torch.ones(2, 2), "bias": torch.ones(2), **change}
    with pytest.raises(WeightsError, match=says) as error:
        load_strict(
            on_meta(lambda: nn.Linear(2, 2)),
            ((name, tensor) for name, tensor in tensors.items() if tensor is not None),
            "the file x",
        )
    assert str(error.value).startswith("the file x: ")


def test_of_tied_weights_the_first_name_counts() -> None:
    module = on_meta(Tied)
    tensors = {"second.weight": torch.zeros(3, 3), "first.weight": torch.ones(3, 3)}
    load_strict(module, [*tensors.items(), ("count", torch.tensor(1))], "x")
    assert module.first.weight is module.second.weight
    assert torch.equal(module.second.weight, torch.ones(3, 3))


def test_a_single_nan_is_no_reason() -> None:
    bias = torch.tensor([torch.nan, 1])
    module = on_meta(lambda: nn.Linear(2, 2))
    load_strict(module, [("weight", torch.ones(2, 2)), ("bias", bias)], "x")
    assert torch.equal(module.bias, bias) or module.bias[0].isnan()


def test_many_names_are_cut_short() -> None:
    with pytest.raises(WeightsError, match=r"a10, a11, a2, a3 and 6 more"):
        load_strict(nn.Module(), [(f"a{n}", torch.ones(1)) for n in range(12)], "x")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"num_attention_heads": 0}, "num_attention_heads is 0", id="0"),
        pytest.param({"num_hidden_layers": 10**7}, "from 1 to 1000", id="layers"),
        pytest.param({"hidden_size": 2.5}, "hidden_size is 2.5", id="fraction"),
        pytest.param({"vocab_size": True}, "vocab_size is True", id="bool"),
        pytest.param({"hidden_size": 65}, "65 cannot be split by 4", id="heads"),
        pytest.param({"num_key_value_heads": 3}, "4 cannot be split by 3", id="shared"),
        pytest.param({"rope_parameters": 3}, "values of no use", id="another kind"),
    ],
)
def test_configurations_of_no_model(changes: dict[str, Any], says: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    with pytest.raises(WeightsError, match=says):
        build_config(LlamaConfig, {**sizes, **changes}, "config.json")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(LlamaConfig().to_dict())), anything)
def test_any_configuration_gives_a_config_or_an_error(key: str, value: Any) -> None:
    try:
        build_config(LlamaConfig, {key: value}, "config.json")
    except WeightsError as error:
        assert "config.json" in str(error)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "\xff"])
def test_json_that_is_no_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"JSON.*; take another"):
        read_json(path, "take another")


def test_renaming_goes_in_order() -> None:
    rules = ((r"^model\.", ""), (r"blocks\.(\d+)", r"layers.\1"), ("layers", "l"))
    assert rename("model.blocks.3.weight", rules) == "l.3.weight"


@pytest.mark.parametrize(
    "source",
    ["nothing", "/no/where", "a/b/c", "owner/name@", "owner/name@1234567", "a/../b"],
)
def test_checkpoints_that_are_nowhere(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"is no folder.*Ask someone\."):
        fetch_checkpoint(source, advice="Ask someone.")


def test_a_pinned_revision_of_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commits = [letter * 40 for letter in "ab"]
    for commit in commits:
        snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    for commit in commits:
        folder = fetch_checkpoint(f"owner/name@{commit}")
        assert revision_of(folder) == commit


def test_the_commit_that_was_fetched_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONCAP_CONFIG", str(tmp_path / "config"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for letter in "ab":  # the hub's latest moves
        commit = letter * 40
        for name in ("refs/main", f"snapshots/{commit}/config.json"):
            path = tmp_path / "models--owner--name" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}" if path.suffix else commit)
        assert revision_of(fetch_checkpoint("owner/name")) == "a" * 40
    assert revision_of(fetch_checkpoint("owner/name@main")) == "b" * 40


def test_revisions_of_folders(tmp_path: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    for folder in (one, several):
        folder.mkdir()
    whole(one)
    shards(several)
    first = revision_of(one)
    assert len(first) == len(revision_of(several)) == 64
    save_file({**WEIGHTS, "three": torch.ones(1)}, one / "model.safetensors")
    assert revision_of(one) not in (first, revision_of(several))
