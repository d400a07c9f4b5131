"""Published checkpoints: one YAML file that names a decoder and what belongs to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import yaml

from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.captioning.patchioner.aggregation import Compat
from fiftyone_regioncap.captioning.patchioner.configuration import PATCHIONER
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.gpt2 import load_gpt2_tokenizer
from fiftyone_regioncap.captioning.patchioner.language import (
    DecapLanguage,
    Language,
    ViecapLanguage,
)
from fiftyone_regioncap.captioning.patchioner.meacap import (
    PARSER_REPOSITORY,
    SENTENCE_REPOSITORY,
    ConceptReader,
)
from fiftyone_regioncap.captioning.patchioner.memory import TextMemory, memory_file_name
from fiftyone_regioncap.captioning.patchioner.model import Patchioner
from fiftyone_regioncap.captioning.patchioner.pretrained import load_pretrained
from fiftyone_regioncap.captioning.patchioner.projection import TextProjection
from fiftyone_regioncap.captioning.patchioner.text import (
    CLIP_REPOSITORY,
    ClipTextEncoder,
)
from fiftyone_regioncap.captioning.patchioner.viecap import (
    COCO_CATEGORIES,
    Prompting,
    ViecapDecoder,
    embed_entities,
)
from fiftyone_regioncap.captioning.patchioner.vision import (
    Backbone,
    ClipTower,
    DinoTower,
)
from fiftyone_regioncap.core.errors import BackendError, WeightsError
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary
from fiftyone_regioncap.models.devices import choose_dtype
from fiftyone_regioncap.models.loading import (
    config_errors,
    fetch_checkpoint,
    is_file_name,
    read_tensors,
    revision_of,
)
from fiftyone_regioncap.system import assets

DEFAULT_REPOSITORY = str(PATCHIONER.weights)
"""The model of the paper's main rows: Talk2DINO with a memory."""

HUB_FILES = ("*.yaml", "*.json", "*.pt", "*.pth", "*.h5", "*.safetensors", "*.txt")
"""Patterns of the files to download; never code, never pickles of objects."""

TEXT_FILES = ("*.yaml", "*.json", "*.pth", "*.txt")
"""Patterns of the files to download for the text side: no memory, no decoder."""

_DINO = {
    "dinov2_vits14_reg": "facebook/dinov2-with-registers-small",
    "dinov2_vitb14_reg": "facebook/dinov2-with-registers-base",
    "dinov2_vitl14_reg": "facebook/dinov2-with-registers-large",
    "dinov2_vitg14_reg": "facebook/dinov2-with-registers-giant",
}
_CLIP = {
    "vit_base_patch16_clip_224.openai": "openai/clip-vit-base-patch16",
    "vit_base_patch32_clip_224.openai": "openai/clip-vit-base-patch32",
}
_UNSUPPORTED = {
    "invite": "its attention masks are in no library this package uses",
    "denseclip": "its weights load only through the authors' own code",
    "proxyclip": "its published row comes from features of unusual scale (a bug)",
    "regionclip": "its ResNet loads only through the authors' own code",
    "alphaclip": "its weights load only through the authors' own code",
    "dinotxt": "its text tower loads only through torch.hub, which runs remote code",
}


@dataclass(frozen=True)
class ViecapConfig:
    """The ``viecap:`` part of a configuration.

    Attributes:
        weight_path: File of the decoder.
        prompting: Prompts of the decoder.
        concepts: Whether hard prompts name MeaCap's concepts, not retrieved entities.
        memory: For MeaCap, folder with ``memory_captions.json``.
        parser: For MeaCap, folder or repository of the scene-graph parser.
        sentences: For MeaCap, folder or repository of the sentence encoder.
        entities: Names that may be retrieved; None for COCO's 80 categories.
        heads: Attention heads per block of the GPT-2.
    """

    weight_path: str
    prompting: Prompting = field(default_factory=Prompting)
    concepts: bool = False
    memory: str = "memory"
    parser: str = PARSER_REPOSITORY
    sentences: str = SENTENCE_REPOSITORY
    entities: tuple[str, ...] | None = None
    heads: int = 12

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ViecapConfig:
        """Reads the part of a published YAML, with MeaCap's part inside it.

        Raises:
            WeightsError: If it names no decoder.
        """
        if "weight_path" not in values:
            raise WeightsError("the viecap part of the configuration lacks weight_path")
        greedy = bool(values.get("using_greedy_search", True))
        only_hard = bool(values.get("only_hard_prompt", False))
        prompting = Prompting(
            soft=not only_hard,
            hard=bool(values.get("using_hard_prompt", True)) or only_hard,
            soft_first=bool(values.get("soft_prompt_first", True)),
            top_k=int(values.get("top_k", 3)),
            threshold=float(values.get("threshold", 0.4)),
            beams=1 if greedy else int(values.get("beam_width", 5)),
        )
        meacap = values.get("meacap") or {}
        return cls(
            weight_path=str(values["weight_path"]),
            prompting=prompting,
            concepts=bool(meacap),
            memory=f"memory/{meacap.get('memory_id', 'coco_B16_t2d')}",
            parser=str(meacap.get("parser_checkpoint", PARSER_REPOSITORY)),
            sentences=str(meacap.get("wte_model_path", SENTENCE_REPOSITORY)),
            entities=values.get("entities"),
            heads=int(values.get("heads", 12)),
        )


@dataclass(frozen=True)
class PatchionerConfig:
    """Configuration of a checkpoint, under the names of the published YAML.

    Attributes:
        prefix_size: Number of channels of the region embeddings.
        support_memory_size: Number of rows of the memory, padding included; 0 for none.
        decap_weights: File of the decoder.
        dino_model: The backbone, by the published name.
        normalize: Whether projected embeddings get length 1.
        resize_dim: Side of the network's square input in pixels.
        calculate_argmax_text: Whether to answer with the memory's nearest caption.
        talk2dino_weights: File of the projection.
        viecap: Configuration of ViECap, which replaces the decoder when given.
        memory: File of the memory; None looks it up by the published name.
        backbone: Folder or repository of the image tower; None goes by ``dino_model``.
        clip: Folder or repository of the text tower, for text search.
        vocabulary: Folder, repository or file of CLIP's vocabulary; None fetches it.
        gpt2_vocabulary: Folder or repository of GPT-2's, for ViECap; None fetches it.
        heads: Attention heads per block of the decoder.
        crop: Whether frames are cropped to a square, see :func:`~.vision.preprocess`.
        compat: Whose numbers to compute; see :data:`~.aggregation.Compat`.
        index: Whether to search the memory by faiss.
    """

    prefix_size: int = 768
    support_memory_size: int = 0
    decap_weights: str | None = None
    dino_model: str = "dinov2_vitb14_reg"
    normalize: bool = True
    resize_dim: int = 518
    calculate_argmax_text: bool = False
    talk2dino_weights: str = "vitb_mlp_infonce.pth"
    viecap: ViecapConfig | None = None
    memory: str | None = None
    backbone: str | None = None
    clip: str = CLIP_REPOSITORY
    vocabulary: str | None = None
    gpt2_vocabulary: str | None = None
    heads: int = 4
    crop: bool = False
    compat: Compat = "fixed"
    index: bool = False

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PatchionerConfig:
        """Reads a published configuration; keys of its baselines are left out.

        Raises:
            WeightsError: If it is not a Patch-ioner configuration.
            BackendError: If its backbone is not supported, with the reason.
        """
        missing = {"prefix_size", "support_memory_size"} - values.keys()
        if missing:
            raise WeightsError(
                f"the configuration lacks {', '.join(sorted(missing))}; give a "
                "Patch-ioner config.yaml"
            )
        _check_supported(values)
        hints = get_type_hints(cls)
        chosen = {
            key: value
            for key, value in values.items()
            if key in hints and value is not None
        }
        if isinstance(chosen.get("viecap"), Mapping):
            with config_errors("the viecap part of the configuration"):
                chosen["viecap"] = ViecapConfig.from_mapping(chosen["viecap"])
        for key, value in chosen.items():
            fits, limits = _fits(value, hints[key]), _LIMITS.get(key)
            if not fits or (limits and not limits[0] <= value <= limits[1]):
                expected = f"from {limits[0]} to {limits[1]}" if limits else hints[key]
                raise WeightsError(
                    f"the configuration's {key} is {value!r}; it must be {expected}"
                )
        return cls(**chosen)


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value has the type that a field of a configuration declares."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


_LIMITS: dict[str, tuple[int, int]] = {
    "prefix_size": (1, 2**16),
    "support_memory_size": (0, 2**40),
    "resize_dim": (1, 4096),
    "heads": (1, 2**10),
}
"""Smallest and largest values of sizes."""


def _check_supported(values: Mapping[str, Any]) -> None:
    name = str(values.get("dino_model", "")).lower()
    named = " ".join(
        [name, *(key for key in values if key.endswith("_config") and values[key])]
    ).lower()
    if values.get("proxyclip_clipmodel"):
        named += " proxyclip"
    for word, reason in _UNSUPPORTED.items():
        if word in named:
            raise BackendError(
                f"the backbone {word} is not supported: {reason}; use a Talk2DINO or "
                "CLIP checkpoint"
            )
    if values.get("clipcap"):
        raise BackendError("ClipCap is a baseline of the paper and not supported")


@dataclass(frozen=True)
class Checkpoint:
    """A configuration and the folder its files are in.

    Attributes:
        config: Configuration of the checkpoint.
        folder: Folder of its files.
        name: Folder or hub repository, as the user gave it.
        revision: The hub's commit, or the sha256 of the decoder's file.
        given: File names that the user gave, not the configuration.
        file: File of the configuration.
    """

    config: PatchionerConfig
    folder: Path
    name: str
    revision: str
    given: frozenset[str] = frozenset()
    file: Path = Path("config.yaml")

    @classmethod
    def open(
        cls,
        source: str | Path = DEFAULT_REPOSITORY,
        overrides: Mapping[str, Any] | None = None,
        files: Sequence[str] = HUB_FILES,
    ) -> Checkpoint:
        """Finds a checkpoint, downloading it when it is a hub repository.

        Args:
            source: A folder with ``config.yaml``, such a file itself, or a hub
                repository.
            overrides: Configuration values that replace the file's.
            files: Patterns of the files to download of a repository.

        Raises:
            WeightsError: If there is no checkpoint there, or it is another model's.
            BackendError: If its backbone is not supported.
        """
        path = Path(source).expanduser()
        if not path.is_file():
            path = fetch_checkpoint(
                source, files=files, advice="give a folder with config.yaml"
            )
        file = path if path.is_file() else path / "config.yaml"
        try:
            values = yaml.safe_load(file.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            raise WeightsError(
                f"no configuration at {file}: {error}; give a folder with config.yaml "
                f"or a hub repository such as {DEFAULT_REPOSITORY}"
            ) from error
        if not isinstance(values, dict):
            raise WeightsError(f"{file} is not a Patch-ioner configuration")
        overrides = overrides or {}
        config = PatchionerConfig.from_mapping({**values, **overrides})
        given = frozenset(v for v in overrides.values() if isinstance(v, str))
        checkpoint = cls(config, file.parent, str(source), "unknown", given, file)
        decoder = config.viecap.weight_path if config.viecap else config.decap_weights
        if decoder is None:
            return checkpoint
        revision = file.parent.resolve().name
        if file.parent.resolve().parent.name != "snapshots":
            revision = revision_of(file.parent, [checkpoint.find(decoder)])
        return replace(checkpoint, revision=revision)

    def find(self, name: str) -> Path:
        """Finds a file of the checkpoint.

        Published configurations hold the authors' own paths, so that a file is also
        found by its last name. Files outside the folder are read only when the user
        named them, not when the configuration does.

        Raises:
            WeightsError: If it is not there.
        """
        if not is_file_name(name) and name not in self.given:
            raise WeightsError(f"{self.name} names a file {name!r}, which none can be")
        path = Path(name).expanduser()
        inside = (self.folder / path).resolve()
        candidates = [self.folder / path.name]
        if name in self.given:
            candidates.insert(0, path)
        if inside.is_relative_to(self.folder.resolve()):
            candidates.insert(0, inside)
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise WeightsError(
            f"{self.name} has no file {path.name}; put it into {self.folder}"
        )

    def text_encoder(
        self,
        device: torch.device | str = "cpu",
        vocabulary: ClipVocabulary | None = None,
    ) -> ClipTextEncoder:
        """Returns the text tower that reaches the backbone's space.

        Raises:
            WeightsError: If the projection or the tower is not there.
        """
        config = self.config
        projection = None
        if not self.is_clip:
            projection = TextProjection.load(self.find(config.talk2dino_weights))
        vocabulary = vocabulary or ClipVocabulary.load(config.vocabulary)
        return ClipTextEncoder.load(
            self._part(config.clip), projection, vocabulary, device
        )

    @cached_property
    def space(self) -> EmbeddingSpace:
        """Returns the embedding space of the backbone's regions.

        How patches are weighted, and everything behind them, is left out: regions that
        differ in that alone can be compared.
        """
        path = self.folder.resolve()
        identity = {
            "backbone": _weights_of(self._part(self._backbone_source())),
            "side": self.config.resize_dim,
            "crop": self.config.crop,
        }
        return EmbeddingSpace(
            captioner="patchioner",
            model=str(path) if Path(self.name).expanduser().exists() else self.name,
            fingerprint=_fingerprint(identity),
            dimension=self.config.prefix_size,
        )

    @cached_property
    def text_fingerprint(self) -> str:
        """Identifies the text tower and the projection.

        Raises:
            WeightsError: If the projection is not there.
        """
        identity: dict[str, Any] = {"tower": _weights_of(self._part(self.config.clip))}
        if not self.is_clip:
            projection = self.find(self.config.talk2dino_weights)
            identity["projection"] = assets.sha256(projection)
        return _fingerprint(identity)

    def load(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
    ) -> Patchioner:
        """Loads backbone and language part.

        Args:
            device: Device to run on.
            dtype: Number format of backbone and decoder; None is bfloat16 on CUDA,
                float32 elsewhere. The memory is searched in float16 when this is half
                precision.

        Raises:
            WeightsError: If a file is missing, corrupt or of another model.
        """
        dtype = choose_dtype(dtype, torch.device(device))
        backbone = self.backbone(device, dtype)
        language = self._language(device, dtype)
        return Patchioner(backbone, language, self.config.compat)

    def backbone(self, device: torch.device | str, dtype: torch.dtype) -> Backbone:
        """Loads the image tower; see :meth:`load`."""
        config = self.config
        clip = self.is_clip
        source = self._part(self._backbone_source())
        name = (_CLIP if clip else _DINO).get(config.dino_model) or source
        side = config.resize_dim
        from transformers import CLIPVisionModelWithProjection, Dinov2WithRegistersModel

        kind = CLIPVisionModelWithProjection if clip else Dinov2WithRegistersModel
        model = load_pretrained(kind, source, "backbone").to(device, dtype)
        tower = ClipTower if clip else DinoTower
        return tower(model, name, side, config.crop)

    def _backbone_source(self) -> str:
        """Returns the folder or repository of the image tower."""
        config = self.config
        published = {**_DINO, **_CLIP}.get(config.dino_model)
        source = config.backbone or published
        if source is None:
            raise BackendError(
                f"the backbone {config.dino_model} is not supported; use one of "
                f"{', '.join([*_DINO, *_CLIP])}, or name a folder as 'backbone'"
            )
        return source

    def _language(self, device: torch.device | str, dtype: torch.dtype) -> Language:
        config = self.config
        if config.viecap is not None:
            return self._viecap(config.viecap, device, dtype)
        if config.decap_weights is None:
            raise WeightsError(f"{self.name} names no decoder (decap_weights)")
        decoder = PrefixDecoder.load(self.find(config.decap_weights), config.heads)
        if decoder.prefix_width != config.prefix_size:
            raise WeightsError(
                f"the decoder reads {decoder.prefix_width} channels, the configuration "
                f"says {config.prefix_size}; use files of one checkpoint"
            )
        vocabulary = ClipVocabulary.load(config.vocabulary)
        if decoder.config.vocabulary < len(vocabulary):
            raise WeightsError(
                f"the decoder knows {decoder.config.vocabulary} tokens, CLIP's "
                f"vocabulary has {len(vocabulary)}; it was trained with another one"
            )
        memory = None
        if config.support_memory_size:
            name = config.memory or memory_file_name(
                config.support_memory_size, **self.memory_naming()
            )
            half = dtype in (torch.float16, torch.bfloat16)
            memory = TextMemory.load(
                self.find(name),
                raw_values=not self.is_clip,
                device=device,
                dtype=torch.float16 if half else torch.float32,
                width=config.prefix_size,
            )
            if config.index:
                memory.use_index(self.find(name).with_suffix(".faiss"))
        return DecapLanguage(
            decoder.to(device, dtype),
            vocabulary,
            memory,
            normalize=config.normalize,
            compat=config.compat,
            nearest_text=config.calculate_argmax_text,
        )

    @property
    def is_clip(self) -> bool:
        """Whether the backbone is CLIP's own, which needs no projection."""
        return self.config.dino_model in _CLIP

    def memory_naming(self) -> dict[str, str]:
        """Returns how the published memories of such a checkpoint are named."""
        if not self.is_clip:
            return {}
        tower = "ViT-B/16" if "patch16" in self.config.dino_model else "ViT-B/32"
        return {"prefix": "clip-", "postfix": "", "clip": tower}

    def _viecap(
        self, part: ViecapConfig, device: torch.device | str, dtype: torch.dtype
    ) -> ViecapLanguage:
        path = self.find(part.weight_path)
        tokenizer = load_gpt2_tokenizer(self.config.gpt2_vocabulary)
        state = dict(read_tensors(path))
        decoder = ViecapDecoder.from_state_dict(
            state, tokenizer, part.heads, source=str(path)
        )
        language = ViecapLanguage(
            decoder.to(device, dtype),
            prompting=part.prompting,
            compat=self.config.compat,
        )
        if part.concepts:
            folder = self._part(part.memory)
            return replace(
                language,
                memory=TextMemory.load_folder(folder, device),
                concepts=ConceptReader.load(part.parser, part.sentences, device),
            )
        names = sorted(name.lower() for name in part.entities or COCO_CATEGORIES)
        vectors = embed_entities(names, self.text_encoder(device))
        return replace(language, names=tuple(names), entities=vectors)

    def _part(self, source: str) -> str:
        """Returns a folder in the checkpoint, or a folder or repository elsewhere."""
        inside = (self.folder / source).resolve()
        if inside.is_relative_to(self.folder.resolve()) and inside.is_dir():
            return str(inside)
        return source


def _weights_of(source: str) -> str:
    """Identifies weights: those of a folder by their bytes.

    Repositories of the hub are known by their name; the published ones don't change.
    """
    folder = Path(source)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return _fingerprint(sorted(map(assets.sha256, files))) if files else source


def _fingerprint(identity: Any) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
