"""Training of Patch-ioner's decoders on text alone: DeCap's and ViECap's.

A caption's embedding (CLIP's text tower, then Talk2DINO) is what the decoder learns to
write the caption from; regions are embedded into the same space later, but elsewhere in
it. A memory of captions or noise on the embedding closes that gap (CapDec, arXiv
2211.00575); neither is the paper's ablation.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import yaml
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor, nn

from fiftyone_regioncap.captioning.patchioner.checkpoint import Checkpoint
from fiftyone_regioncap.captioning.patchioner.configuration import (
    PatchionerTrainingOptions,
)
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.gpt2 import (
    Gpt2Config,
    load_gpt2_tokenizer,
)
from fiftyone_regioncap.captioning.patchioner.memory import (
    build_memory,
    memory_file_name,
)
from fiftyone_regioncap.captioning.patchioner.sizes import published
from fiftyone_regioncap.captioning.patchioner.viecap import (
    ViecapDecoder,
    hard_prompt,
)
from fiftyone_regioncap.captioning.trainable import (
    IGNORED,
    Inputs,
    Recipe,
    TrainingDefaults,
    TrainingNetwork,
    TrainingText,
    next_tokens,
    pad_rows,
    token_loss,
)
from fiftyone_regioncap.core.errors import OptionError, PromptError
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary
from fiftyone_regioncap.models.devices import choose_device
from fiftyone_regioncap.models.loading import read_tensors
from fiftyone_regioncap.models.saving import copy, save_tensors

DECODER = "decoder.safetensors"
"""File of a trained decoder."""

ENTITIES = 10
"""Most entities of a caption that are named to ViECap."""

PEOPLE = frozenset(
    [
        *("people", "person", "man", "men", "woman", "women", "adult", "boy", "girl"),
        *("kid", "children", "child", "baby", "guy", "player", "male", "female"),
        "worker",
    ]
)
"""Entities that are all named "person"."""

NO_ENTITIES = ENGLISH_STOP_WORDS | {
    "photo",
    "image",
    "picture",
    "pic",
    "side",
    "part",
    "background",
}
"""Words of captions that name no thing."""

NOISE = {"decap": 0.08, "viecap": 0.016**0.5}
"""Standard deviations of the noise that the published decoders were trained with."""

_EXCLAMATION = 0
"""Id of "!" in both vocabularies, which the authors use for padding: never learned."""


class DecapNetwork(TrainingNetwork):
    """The loss of captions written from one embedding each.

    Args:
        decoder: The decoder; it is shared.
        smoothing: Label smoothing of the cross-entropy in training.
    """

    def __init__(self, decoder: PrefixDecoder, smoothing: float) -> None:
        super().__init__()
        self.decoder = decoder
        self._smoothing = smoothing

    def forward(
        self,
        prefix: Tensor,
        ids: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Computes the loss of a batch.

        Args:
            prefix: Embeddings of length 1, (R, D).
            ids: Token ids of the captions, int64 (R, T).
            labels: The same, or :data:`IGNORED`.
            num_items_in_batch: See :class:`Trainable`.
        """
        logits = self.decoder.logits(prefix, ids)
        smoothing = self._smoothing if self.training else 0.0
        return {"loss": token_loss(logits, labels, num_items_in_batch, smoothing)}


class ViecapNetwork(TrainingNetwork):
    """The loss of captions behind a soft and a hard prompt.

    Args:
        decoder: The decoder; it is shared.
    """

    def __init__(self, decoder: ViecapDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        prefix: Tensor,
        ids: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Computes the loss of a batch.

        Args:
            prefix: Embeddings of length 1, (R, D).
            ids: Token ids of hard prompt and caption, int64 (R, T).
            labels: Token to predict at each place, the soft prompt's first, int64
                (R, soft + T).
            num_items_in_batch: See :class:`Trainable`.
        """
        decoder = self.decoder
        soft = decoder.mapping_network(prefix)
        hidden = decoder.gpt(torch.cat([soft, decoder.gpt.embed(ids)], dim=1))
        spoken = labels != IGNORED
        logits = decoder.gpt.logits(hidden[spoken])
        return {"loss": token_loss(logits, labels[spoken], num_items_in_batch)}


class PatchionerTraining(Recipe):
    """Trains the decoder of a checkpoint: ViECap's where it has one, else DeCap's.

    Args:
        checkpoint: The checkpoint, with text tower and projection.
        options: How samples are made, and what closes the gap to images.
        device: Torch device to run on.
    """

    frames = 0
    network: DecapNetwork | ViecapNetwork

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: PatchionerTrainingOptions | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self._options = options = options or PatchionerTrainingOptions()
        self._checkpoint, self.base = checkpoint, checkpoint.folder
        self._device = choose_device(device)
        config = checkpoint.config
        self._kind: Literal["decap", "viecap"] = "viecap" if config.viecap else "decap"
        self._mitigation = options.mitigation or (
            "noise" if config.viecap else "memory"
        )
        if config.viecap and self._mitigation == "memory":
            raise OptionError(
                "mitigation='memory': ViECap has no memory; give noise or off"
            )
        self._noise = 0.0
        if self._mitigation == "noise":
            chosen = options.noise
            self._noise = NOISE[self._kind] if chosen is None else chosen
        self._features: dict[str, Tensor] = {}
        self._captions: tuple[str, ...] = ()
        if config.viecap is not None:
            decoder = self._viecap_decoder()
            self.network = ViecapNetwork(decoder)
            self.network.requires_grad_(options.trains == "everything")
            decoder.mapping_network.requires_grad_(True)
            self.defaults = TrainingDefaults(
                2e-5, epsilon=1e-6, schedule="linear", warmup=5000, max_grad_norm=0
            )
        else:
            self._vocabulary = ClipVocabulary.load(config.vocabulary)
            self.network = DecapNetwork(self._decap_decoder(), options.label_smoothing)
            self.network.requires_grad_(True)
            self.defaults = TrainingDefaults(
                1e-5, weight_decay=0.01, schedule="linear", warmup=1000, max_grad_norm=0
            )
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = options.dropout
        self.network.to(self._device)
        gap = f"with {self._mitigation} against the gap to images"
        self.notes = (f"Trained on text alone, {gap}.",)

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        options: PatchionerTrainingOptions | None = None,
    ) -> PatchionerTraining:
        """Loads a checkpoint to train its decoder; see :class:`Trainable`."""
        return cls(Checkpoint.open(weights), options, device)

    @classmethod
    def without_weights(
        cls, weights: str | None, dtype: torch.dtype, options: PatchionerTrainingOptions
    ) -> tuple[TrainingNetwork, Inputs]:
        """Returns the published DeCap on the meta device; see :class:`Recipe`."""
        width = published().hidden_size
        with torch.device("meta"):
            decoder = PrefixDecoder(width, Gpt2Config()).to(dtype)
            prefix = torch.empty(1, width, dtype=dtype)
        words = torch.ones(1, options.tokens, dtype=torch.int64)
        network = DecapNetwork(decoder, options.label_smoothing)
        return network, {"prefix": prefix, "ids": words.to("meta"), "labels": words}

    @property
    def revision(self) -> str:
        """Returns the commit or hash of the weights that training began with."""
        return self._checkpoint.revision

    @cached_property
    def _text_tower(self) -> Callable[[Sequence[str]], Tensor]:
        vocabulary = None if self._kind == "viecap" else self._vocabulary
        return self._checkpoint.text_encoder(self._device, vocabulary)

    def _decap_decoder(self) -> PrefixDecoder:
        config, sizes = self._checkpoint.config, Gpt2Config()
        if config.decap_weights is not None:
            path = self._checkpoint.find(config.decap_weights)
            decoder = PrefixDecoder.load(path, config.heads)
            if self._options.fresh is False:
                return decoder
            sizes = decoder.config
        return PrefixDecoder(config.prefix_size, sizes)

    def _viecap_decoder(self) -> ViecapDecoder:
        config = self._checkpoint.config
        assert config.viecap is not None
        path = self._checkpoint.find(config.viecap.weight_path)
        decoder = ViecapDecoder.from_state_dict(
            dict(read_tensors(path)),
            load_gpt2_tokenizer(config.gpt2_vocabulary),
            config.viecap.heads,
            source=str(path),
        )
        if self._options.fresh:
            renew_mapping(decoder)
        return decoder

    def prepare(self, captions: Sequence[str]) -> None:
        """Embeds all captions, which become the memory where there is one.

        Those that are too long are left to :meth:`encode`, which says so of each.
        """
        self._captions = tuple(captions)
        wanted = [t for t in dict.fromkeys(captions) if t not in self._features]
        try:
            found = self._text_tower(wanted).float().cpu() if wanted else ()
        except PromptError:
            return
        # Out of the inference mode that they were made in.
        self._features.update(
            (t, v.clone()) for t, v in zip(wanted, found, strict=True)
        )

    def encode(
        self, clip: RegionClip, text: TrainingText, draw: random.Random
    ) -> Inputs:
        """Makes embedding, prompt and labels of a caption; see :class:`Trainable`."""
        if text.caption not in self._features:
            found = self._text_tower([text.caption]).float().cpu()
            self._features[text.caption] = found[0].clone()
        feature = self._features[text.caption]
        noise = None
        if self._noise:
            generator = torch.Generator().manual_seed(draw.getrandbits(63))
            noise = self._noise * torch.randn(feature.shape, generator=generator)
        prefix = noisy(feature, noise)
        if self._kind == "viecap":
            entities = masked_entities(
                text.nouns, self._entities, draw, self._options.entity_dropout
            )
            return {"prefix": prefix, **self.sequence(entities, text.caption)}
        ids = self._vocabulary.tokenize([text.caption])[0, : self._options.tokens]
        labels = [int(token) or IGNORED for token in ids]
        return {"prefix": prefix, "ids": ids.tolist(), "labels": labels}

    @cached_property
    def _entities(self) -> Collection[str] | None:
        given = self._options.entities
        if given is None:
            return None
        lines = Path(given).expanduser().read_text("utf-8").splitlines()
        return {line.strip().lower() for line in lines if line.strip()}

    def sequence(self, entities: Sequence[str], caption: str) -> dict[str, list[int]]:
        """Returns ids and labels of ViECap's hard prompt and a caption.

        Args:
            entities: Names in the hard prompt.
            caption: The caption, which is made a sentence.

        Raises:
            PromptError: If both are longer than the decoder reads.
        """
        assert isinstance(self.network, ViecapNetwork)
        decoder = self.network.decoder
        soft = len(decoder.mapping_network.prefix_const)
        hard = decoder.tokenizer.encode(hard_prompt(entities))
        said = decoder.tokenizer.encode(as_sentence(caption))
        length = soft + len(hard) + len(said)
        if length > decoder.gpt.config.positions:
            raise PromptError(
                f"prompts and caption take {length} tokens, the decoder reads "
                f"{decoder.gpt.config.positions}; shorten the caption"
            )
        labels = [token or IGNORED for token in said]
        return {
            "ids": [*hard, *said],
            "labels": [*[IGNORED] * (soft + len(hard)), *labels],
        }

    def collate(self, samples: Sequence[Inputs]) -> Inputs:
        """Makes a batch; see :class:`Trainable`."""
        labels = [sample["labels"] for sample in samples]
        if self._kind == "viecap":
            labels = [next_tokens(row) for row in labels]
        return {
            "prefix": torch.stack([sample["prefix"] for sample in samples]),
            "ids": pad_rows([sample["ids"] for sample in samples], _EXCLAMATION),
            "labels": pad_rows(labels, IGNORED),
        }

    def write_merged(self, folder: Path) -> None:
        """Writes a checkpoint: configuration, decoder, projection and memory.

        Backbone, text tower and vocabularies stay where they are; those in the base's
        folder come along.
        """
        checkpoint, config = self._checkpoint, self._checkpoint.config
        for name in ("backbone", "clip", "vocabulary", "gpt2_vocabulary"):
            source = getattr(config, name)
            inside = source and (checkpoint.folder / source)
            if inside and inside.exists() and not Path(source).is_absolute():
                copy(inside, folder / source)
        values = yaml.safe_load(checkpoint.file.read_text("utf-8"))
        decoder = self.network.decoder
        state = dict(decoder.state_dict())
        if isinstance(decoder, PrefixDecoder):
            state = decoder.published_state_dict()
            values["decap_weights"] = DECODER
            values["support_memory_size"] = 0
            if self._mitigation == "memory":
                values["support_memory_size"] = len(self._captions)
                values.pop("memory", None)
                name = memory_file_name(
                    len(self._captions), **checkpoint.memory_naming()
                )
                build_memory(folder / name, self._captions, self._from_table)
            values.pop("viecap", None)
            values["prefix_size"] = decoder.prefix_width
            values["heads"] = decoder.config.heads
        else:
            values["viecap"] = {**values["viecap"], "weight_path": DECODER}
        save_tensors(folder / DECODER, state)
        if not checkpoint.is_clip:
            projection = checkpoint.find(config.talk2dino_weights)
            name = Path(config.talk2dino_weights).with_suffix(".safetensors").name
            save_tensors(folder / name, dict(read_tensors(projection)))
            values["talk2dino_weights"] = name
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(text, encoding="utf-8")

    def _from_table(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self._features[text] for text in captions])


def noisy(feature: Tensor, noise: Tensor | None) -> Tensor:
    """Scales an embedding to length 1, adds noise, and scales it again."""
    unit = nn.functional.normalize(feature, dim=-1)
    if noise is None:
        return unit
    return nn.functional.normalize(unit + noise, dim=-1)


def as_sentence(caption: str) -> str:
    """Returns a caption as ViECap is trained on it: a capital first, a mark last."""
    text = caption.strip()
    if text.isupper():
        text = text.lower()
    text = text[:1].upper() + text[1:]
    return text if text.endswith(tuple(string.punctuation)) else f"{text}."


def valid_entities(
    entities: Sequence[str], vocabulary: Collection[str] | None
) -> list[str]:
    """Returns the entities that a hard prompt may name, at most ten of them.

    Args:
        entities: Nouns of a caption, in the singular.
        vocabulary: Names that may be named, in lower case; None for all nouns that name
            a thing.
    """
    kept = []
    for entity in entities[:ENTITIES]:
        name = entity.lower()
        if name in PEOPLE:
            kept.append("person")
        elif (
            len(name) > 1
            and name not in NO_ENTITIES
            and (vocabulary is None or name in vocabulary)
        ):
            kept.append(name)
    return kept


def masked_entities(
    entities: Sequence[str],
    vocabulary: Collection[str] | None,
    draw: random.Random,
    share: float,
) -> list[str]:
    """Leaves entities out at random, so that the decoder does not rely on them.

    Args:
        entities: Nouns of a caption, in the singular.
        vocabulary: See :func:`valid_entities`.
        draw: Source of one number an entity.
        share: Chance of each to be left out.
    """
    valid = valid_entities(entities, vocabulary)
    return list(dict.fromkeys([name for name in valid if draw.random() >= share]))


def renew_mapping(decoder: ViecapDecoder) -> None:
    """Gives a decoder a new mapping network with random weights."""
    for module in decoder.mapping_network.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()
    nn.init.normal_(decoder.mapping_network.prefix_const)
