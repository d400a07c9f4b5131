"""Protocol of captioners that can be trained, and what their recipes share.

A recipe is one file beside a captioner: what trains, how a sample becomes inputs and
labels, and the loss. The room :mod:`fiftyone_regioncap.training` does the rest alike
for all of them. Recipes compute with the captioner's own modules, so that what is
trained is what captions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.configuration import LoraOptions
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.saving import save_adapter

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

IGNORED = -100
"""Label of tokens that the loss leaves out."""

Inputs: TypeAlias = Mapping[str, Any]
"""What a network's ``forward`` takes, of one sample or of a batch."""

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama or Qwen2 block, by transformers' names."""


@dataclass(frozen=True)
class TrainingText:
    """What a person or a model said of a region, to be learned.

    Attributes:
        caption: The caption.
        label: Short name of the object, when it is known.
        tags: Names of tags of the region.
        speech: Words of the caption with their part of speech, as the Penn Treebank
            names them (``NN``, ``JJ``); empty where they are not known.
        nouns: Nouns of the caption in the singular.
    """

    caption: str
    label: str | None = None
    tags: tuple[str, ...] = ()
    speech: tuple[tuple[str, str], ...] = ()
    nouns: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingDefaults:
    """How a model is optimized where the user doesn't say otherwise.

    Attributes:
        learning_rate: Highest learning rate.
        weight_decay: Weight decay of AdamW, on all but biases and norms.
        epsilon: Epsilon of AdamW.
        schedule: How the learning rate falls after the warm-up.
        warmup: Share of the steps over which it rises, below 1, or their number.
        max_grad_norm: Norm that gradients are clipped to; 0 for no clipping.
        rates: Factors on the learning rate by the beginning of parameters' names; 1 for
            all others.
    """

    learning_rate: float
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03
    max_grad_norm: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)


class Trainable(Protocol):
    """A captioner's recipe: what trains, inputs and labels, and the loss.

    Attributes:
        network: All modules that take part. Its parameters that require a gradient are
            those that train. ``forward(**batch)`` returns a mapping with ``loss``, and
            takes ``num_items_in_batch``, the number of labels of a whole step.
        defaults: How the model is optimized by default.
        frames: Number of frames of each clip; 0 for a recipe that learns from captions
            alone.
        notes: What the user should know of this training, in full sentences.
    """

    network: TrainingNetwork
    defaults: TrainingDefaults
    frames: ClassVar[int]
    notes: tuple[str, ...]

    @property
    def revision(self) -> str:
        """Returns the commit or hash of the weights that training began with."""

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        options: Any = None,
    ) -> Trainable:
        """Loads a checkpoint to train it on.

        Args:
            weights: A folder, or the hub id of a published checkpoint.
            device: Torch device to run on; None for a GPU where there is one.
            dtype: Numeric type of the weights that don't train.
            options: The recipe's own options; None for their defaults.
        """

    def encode(
        self, clip: RegionClip, text: TrainingText, draw: random.Random
    ) -> Inputs:
        """Makes the inputs and labels of one sample; runs in any process.

        Args:
            clip: The region.
            text: What is to be learned of it.
            draw: Source of all randomness of the sample, so that it depends on nothing
                but the seed, the epoch and the sample.

        Raises:
            PromptError: When the clip or the text can't be learned.
        """

    def collate(self, samples: Sequence[Inputs]) -> Inputs:
        """Makes a batch: tensors whose ``labels`` are :data:`IGNORED` at padding."""

    def prepare(self, captions: Sequence[str]) -> None:
        """Is told all captions to learn, before the first step."""

    def captioner(self) -> Captioner:
        """Returns a captioner of the same modules, to evaluate what was learned.

        Recipes that learn from captions alone need none.
        """

    def export(self, folder: Path, *, adapter: bool = False) -> None:
        """Writes the weights in the layout that the captioner loads, as safetensors.

        Args:
            folder: Folder to write to; it exists.
            adapter: Whether to write only what was trained, to be loaded with the base
                checkpoint, instead of whole merged weights.

        Raises:
            OptionError: When there is no adapter to write.
        """


class TrainingNetwork(nn.Module):
    """Base of recipes' networks: what transformers' Trainer asks of a model."""

    accepts_loss_kwargs = True
    """Whether ``forward`` takes ``num_items_in_batch``."""

    def checkpoint_activations(self) -> None:
        """Computes activations of language models twice instead of keeping them."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and module.can_generate():
                # The method's first name is deprecated since transformers 5.20.
                enable = getattr(module, "activation_checkpointing_enable", None)
                (enable or module.gradient_checkpointing_enable)(
                    {"use_reentrant": False}
                )

    def train(self, mode: bool = True) -> TrainingNetwork:
        """Sets the mode; modules of which nothing trains stay in eval mode."""
        super().train(mode)
        if mode:
            for module in self.children():
                if not any(p.requires_grad for p in module.parameters()):
                    module.eval()
        return self


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that train by name, each once."""
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def token_loss(
    logits: Tensor,
    labels: Tensor,
    count: Tensor | int | None,
    smoothing: float = 0.0,
) -> Tensor:
    """Computes the cross-entropy of labeled tokens.

    Args:
        logits: Scores of the vocabulary at each place, (..., V).
        labels: The token to be predicted at each place, int64 (...), or
            :data:`IGNORED`.
        count: Number of labels of the whole step, over all its batches and processes;
            None for those of this batch.
        smoothing: Label smoothing.

    Returns:
        The sum over labels, divided by their number.
    """
    flat = labels.flatten()
    total = F.cross_entropy(
        logits.flatten(0, -2).float(),
        flat,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )
    return total / ((flat != IGNORED).sum().clamp_min(1) if count is None else count)


def next_tokens(labels: Sequence[int]) -> list[int]:
    """Moves labels to the place before each, where they are predicted."""
    return [*labels[1:], IGNORED]


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Returns rows as one tensor, int64 (B, longest), padded on the right."""
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=torch.int64) for row in rows],
        batch_first=True,
        padding_value=value,
    )


def add_lora(
    module: nn.Module, options: LoraOptions, targets: Sequence[str] = LINEARS
) -> None:
    """Adds LoRA matrices (arXiv 2106.09685) to linear layers; they alone train.

    Args:
        module: Module that is changed in place.
        options: Rank, scale and dropout.
        targets: Last parts of the layers' names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha or 2 * options.rank,
        lora_dropout=options.dropout,
        target_modules=list(targets),
    )
    inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def lora_layers(module: nn.Module) -> dict[str, Any]:
    """Returns the layers with LoRA matrices by name."""
    from peft.tuners.lora import LoraLayer

    return {n: m for n, m in module.named_modules() if isinstance(m, LoraLayer)}


def merged_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights of a module by the names that they had before LoRA, merged."""
    layers = lora_layers(module)
    for name, tensor in module.state_dict().items():
        owner, inside, rest = name.partition(".base_layer.")
        if ".lora_" in name:
            continue
        if inside and rest == "weight":
            added = layers[owner].get_delta_weight("default")
            tensor = (tensor.float() + added.float()).to(tensor.dtype)
        yield (f"{owner}.{rest}" if inside else name), tensor


class Recipe:
    """Base of recipes: loads the captioner and writes what was trained.

    Attributes:
        captioner_class: Class of the captioner whose modules train.
        captioner_options: Class of its options.
        network: See :class:`Trainable`.
        base: Folder of the checkpoint that training began with.
        notes: See :class:`Trainable`.
    """

    captioner_class: ClassVar[Any]
    captioner_options: ClassVar[type[Options]]
    network: TrainingNetwork
    base: Path
    notes: tuple[str, ...] = ()
    _captioner: Captioner

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        options: Any = None,
    ) -> Self:
        """Loads a checkpoint to train it on; see :class:`Trainable`.

        Raises:
            OptionError: When the captioner does not compute in the numeric type.
        """
        name = str(dtype).removeprefix("torch.")
        given = {"dtype": name, **cls.captioning(options)}
        chosen: Any = cls.captioner_options.from_mapping(given, cls.__name__)
        if dtype is torch.float16:  # by autocast, over weights that don't underflow
            chosen = replace(chosen, dtype="float32")
        captioner = cls.captioner_class.from_pretrained(
            weights, device=device, options=chosen
        )
        make: Any = cls
        return make(captioner, cls.checkpoint(weights, captioner), options)

    @classmethod
    def captioning(cls, options: Any) -> Mapping[str, Any]:
        """Returns the captioner's options that follow from those of the training."""
        return {}

    @classmethod
    def checkpoint(cls, weights: str | Path, captioner: Any) -> Any:
        """Returns the folder, or the files, that the captioner was loaded from."""
        raise NotImplementedError

    @classmethod
    def without_weights(
        cls, weights: str | None, dtype: torch.dtype, options: Any
    ) -> tuple[TrainingNetwork, Inputs]:
        """Returns the network on the meta device, and what a batch of one looks like.

        Args:
            weights: Folder of a checkpoint; the published sizes for anything else.
            dtype: Numeric type that it computes in.
            options: The recipe's own options.

        Raises:
            BackendError: When the sizes are not known before the weights are loaded.
        """
        raise BackendError(f"{cls.__name__}: what its training needs can't be planned")

    def captioner(self) -> Captioner:
        """Returns a captioner of the same modules; see :class:`Trainable`."""
        return self._captioner

    @property
    def revision(self) -> str:
        """Returns the commit or hash of the weights; see :class:`Trainable`."""
        return self.captioner().info.revision

    def prepare(self, captions: Sequence[str]) -> None:
        """Does nothing; see :class:`Trainable`."""

    def export(self, folder: Path, *, adapter: bool = False) -> None:
        """Writes the weights; see :class:`Trainable`."""
        folder.mkdir(parents=True, exist_ok=True)
        if not adapter:
            self.write_merged(folder)
            return
        named = self.network.named_parameters(remove_duplicate=False)
        tensors = {name: p for name, p in named if p.requires_grad}
        save_adapter(
            folder, str(self.base.resolve()), tensors, _lora_config(self.network)
        )

    def write_merged(self, folder: Path) -> None:
        """Writes whole weights in the layout that the captioner loads."""
        raise NotImplementedError


def _lora_config(network: nn.Module) -> dict[str, Any]:
    """Returns PEFT's configuration of a network's LoRA matrices; empty without any."""
    layers = lora_layers(network)
    if not layers:
        return {}
    first = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "r": first.r["default"],
        "lora_alpha": first.lora_alpha["default"],
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "bias": "none",
    }
