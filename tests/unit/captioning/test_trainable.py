from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fiftyone_regioncap.captioning.configuration import LoraOptions
from fiftyone_regioncap.captioning.trainable import (
    IGNORED,
    Recipe,
    TrainingNetwork,
    add_lora,
    merged_tensors,
    token_loss,
)
from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.saving import (
    adapter_base,
    apply_adapter,
    copy,
    rewrite,
    save_tensors,
)


class Network(TrainingNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.llm = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "other": nn.Linear(4, 2)})


class Tiny(Recipe):
    def __init__(self, base: Path) -> None:
        torch.manual_seed(0)
        self.network, self.base = Network(), base
        add_lora(self.network.llm, LoraOptions(rank=2, alpha=6))
        self.network.llm["other"].requires_grad_(True)


def moved(recipe: Tiny) -> Tiny:
    with torch.no_grad():
        for parameter in recipe.network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return recipe


def test_an_adapter_gives_the_merged_weights(tmp_path: Path) -> None:
    recipe = moved(Tiny(tmp_path))
    recipe.export(tmp_path / "adapter", adapter=True)
    merged = dict(merged_tensors(recipe.network))
    torch.manual_seed(0)
    plain = Network()
    assert merged.keys() == plain.state_dict().keys()
    apply_adapter(tmp_path / "adapter", {"llm": plain.llm})
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, merged[name])
    assert adapter_base(tmp_path / "adapter") == str(tmp_path.resolve())
    assert adapter_base(tmp_path) is None


def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    moved(Tiny(tmp_path)).export(tmp_path / "adapter", adapter=True)
    other = nn.ModuleDict({"q_proj": nn.Linear(4, 5)})
    with pytest.raises(WeightsError, match=r"unexpected.*other.*another shape"):
        apply_adapter(tmp_path / "adapter", {"llm": other})


def test_rewriting_keeps_types_and_other_files(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    half = torch.ones(2, dtype=torch.bfloat16)
    save_tensors(source / "model.safetensors", {"a": half, "b": half})
    (source / "config.json").write_text("{}")
    rewrite(source, target, lambda name, t: t.float() + 1 if name == "a" else t)
    written = load_file(target / "model.safetensors")
    assert written["a"].dtype == torch.bfloat16 and written["a"].tolist() == [2, 2]
    assert written["b"].tolist() == [1, 1]
    assert (target / "config.json").read_text() == "{}"


def test_parts_of_a_step_add_up_to_its_loss() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, IGNORED, 2, 3, IGNORED, 4])
    whole = token_loss(logits, labels, None)
    parts = [token_loss(logits[s], labels[s], 4) for s in (slice(2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), whole)
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(token_loss(logits, labels, None, 0.1), expected)


def test_modules_that_do_not_train_stay_in_eval_mode() -> None:
    network = Network()
    network.frozen = nn.Dropout()
    network.llm.requires_grad_(True)
    network.train()
    assert network.llm.training and not network.frozen.training


def test_writing_again_leaves_the_base_alone(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    for name, text in (("one", "1"), ("two", "2")):
        (base / name).mkdir(parents=True)
        (base / name / "config.json").write_text(text)
    copy(base / "one", out / "part")
    copy(base / "one", out / "part")
    copy(base / "two", out / "part")  # in the place of what is shared with the first
    assert (out / "part" / "config.json").read_text() == "2"
    assert (base / "one" / "config.json").read_text() == "1"
