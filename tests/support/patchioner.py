"""A whole checkpoint of random weights in the published layout, as small as wanted.

For trying out the pipeline, for benchmarks of the published sizes, and for tests: it
loads like a published one and says nothing sensible.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml

from fiftyone_regioncap.captioning.patchioner.checkpoint import PatchionerConfig
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.gpt2 import (
    Gpt2Config,
    load_gpt2_tokenizer,
)
from fiftyone_regioncap.captioning.patchioner.memory import (
    build_memory,
    memory_file_name,
)
from fiftyone_regioncap.captioning.patchioner.projection import TextProjection
from fiftyone_regioncap.captioning.patchioner.text import ClipTextEncoder
from fiftyone_regioncap.captioning.patchioner.viecap import (
    MappingNetwork,
    ViecapDecoder,
)
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary

CAPTIONS = (
    "a brown dog runs on the grass .",
    "two dogs play with a red ball .",
    "a man in a blue shirt rides a bike .",
    "a car is parked on the street .",
    "a black cat sleeps on a chair .",
    "a woman holds an umbrella in the rain .",
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model's parts.

    Attributes:
        backbone: Channels of the image tower; 768 in the published base model.
        backbone_layers: Blocks of it; 12.
        backbone_heads: Attention heads of a block; 12.
        side: Side of its square input in pixels; 518.
        text: Channels of the text tower's output; 512.
        decoder: Sizes of the GPT-2.
    """

    backbone: int = 64
    backbone_layers: int = 2
    backbone_heads: int = 4
    side: int = 112
    text: int = 32
    decoder: Gpt2Config = field(
        default_factory=lambda: Gpt2Config(width=32, layers=2, heads=4, positions=40)
    )


def write_random_checkpoint(
    folder: str | Path,
    sizes: Sizes | None = None,
    *,
    captions: Sequence[str] = CAPTIONS,
    memory: bool = True,
    vocabulary: str | Path | None = None,
    seed: int = 0,
) -> Path:
    """Writes a Talk2DINO checkpoint of random weights.

    Args:
        folder: Made when absent; ``PatchionerCaptioner.from_pretrained(folder)`` loads
            it.
        sizes: Sizes of the parts; None is small enough for a CPU.
        captions: Captions that the memory is built from.
        memory: False writes the noise-trained variant, without memory.
        vocabulary: Vocabulary of decoder and text tower as
            :meth:`ClipVocabulary.load` finds it; None is CLIP's.
        seed: Seed of the weights.

    Returns:
        The folder.
    """
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    sizes = sizes or Sizes()
    folder = Path(folder)
    words = ClipVocabulary.load(vocabulary)
    # Weights larger than usual, so that patches, texts and regions that differ stay
    # apart through all the layers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=sizes.backbone,
                num_hidden_layers=sizes.backbone_layers,
                num_attention_heads=sizes.backbone_heads,
                image_size=sizes.side,
                patch_size=14,
                initializer_range=0.2,
            )
        )
        tower = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=sizes.text,
                intermediate_size=2 * sizes.text,
                projection_dim=sizes.text,
                num_hidden_layers=2,
                num_attention_heads=4,
                initializer_factor=10.0,
                bos_token_id=words.start_id,
                eos_token_id=words.end_id,
            )
        ).eval()
        projection = TextProjection(sizes.text, sizes.backbone).eval()
        decoder = PrefixDecoder(sizes.backbone, sizes.decoder)
        for weight in decoder.clip_project.parameters():
            torch.nn.init.normal_(weight, std=1.0)
    backbone.save_pretrained(folder / "backbone")
    tower.save_pretrained(folder / "clip")
    config = PatchionerConfig(
        prefix_size=sizes.backbone,
        support_memory_size=len(captions) if memory else 0,
        decap_weights="decoder.pt",
        resize_dim=sizes.side,
        talk2dino_weights="projection.pth",
        backbone="backbone",
        clip="clip",
        vocabulary=None if vocabulary is None else str(vocabulary),
        heads=sizes.decoder.heads,
    )
    torch.save(decoder.published_state_dict(), folder / "decoder.pt")
    torch.save(dict(projection.state_dict()), folder / "projection.pth")
    values = {key: value for key, value in asdict(config).items() if value is not None}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    if memory:
        encoder = ClipTextEncoder(tower, words, projection)
        build_memory(folder / memory_file_name(len(captions)), captions, encoder)
    return folder


def write_viecap_checkpoint(folder: Path, base: Path) -> Path:
    """Writes a checkpoint with ViECap's decoder of random weights.

    Args:
        folder: Made when absent.
        base: Checkpoint of :func:`write_random_checkpoint`, whose other parts it has.

    Returns:
        The folder.
    """
    shutil.copytree(base, folder, dirs_exist_ok=True)
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = ViecapDecoder(
            MappingNetwork(config["prefix_size"], 32, layers=2),
            Gpt2Config(width=32, layers=2, heads=4, positions=128),
            load_gpt2_tokenizer(),
        )
    torch.save(decoder.state_dict(), folder / "coco_prefix-0014.pt")
    config["viecap"] = {
        "weight_path": "/authors/own/coco_prefix-0014.pt",
        "threshold": 0.01,
        "heads": 4,
    }
    config["support_memory_size"] = 0
    text = yaml.safe_dump(config, sort_keys=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return folder
