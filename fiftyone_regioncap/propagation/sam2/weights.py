"""Loads trackers' weights from a folder, the cache or the hub, strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.system.assets import sha256


@dataclass(frozen=True)
class _Family:
    label: str
    model_types: tuple[str, ...]
    model_class: str
    config_class: str
    example: str


class Architecture(Enum):
    """Which model a checkpoint must hold.

    SAM 2's repositories may carry the configuration of the image model, whose weights'
    names are a part of the video model's.
    """

    SAM2 = _Family(
        "SAM 2",
        ("sam2_video", "sam2"),
        "Sam2VideoModel",
        "Sam2VideoConfig",
        "facebook/sam2.1-hiera-tiny",
    )
    EDGETAM = _Family(
        "EdgeTAM",
        ("edgetam_video", "edgetam"),
        "EdgeTamVideoModel",
        "EdgeTamVideoConfig",
        "yonigozlan/EdgeTAM-hf",
    )
    SAM3_TRACKER = _Family(
        "SAM 3's tracker",
        ("sam3_tracker_video", "sam3_video"),
        "Sam3TrackerVideoModel",
        "Sam3TrackerVideoConfig",
        "facebook/sam3",
    )


@dataclass(frozen=True)
class LoadedWeights:
    """A model with its weights.

    Attributes:
        model: the transformers model, float32, on the CPU.
        name: of the repository or folder.
        revision: hub commit, or the sha256 of the weights' files.
    """

    model: Any
    name: str
    revision: str


def load_weights(
    path_or_repo: str,
    architecture: Architecture,
    *,
    image_size: int | None = None,
    revision: str | None = None,
) -> LoadedWeights:
    """Loads a checkpoint.

    Args:
        path_or_repo: a folder with ``config.json`` and safetensors, or a repository.
        architecture: what it must hold.
        image_size: side of the square that frames are resized to; None takes the
            checkpoint's own.
        revision: of the repository.

    Raises:
        WeightsError: when it is absent, corrupt, or of another architecture.
    """
    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        name, found = folder.name, None
    else:
        folder = _download(path_or_repo, architecture, revision)
        name, found = path_or_repo, folder.name
    config = _load_config(folder, architecture)
    if image_size is not None:
        set_image_size(config, image_size)
    model = _load_model(folder, config, architecture)
    return LoadedWeights(model, name, found or _sha256(folder))


def _download(repo: str, architecture: Architecture, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    example = architecture.value.example
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=["config.json", "*.safetensors", "*.safetensors.index.json"],
        )
    except HFValidationError as error:
        raise WeightsError(
            f"{repo} is neither a folder nor a repository; give a folder written by "
            f"save_pretrained, or a repository such as {example}"
        ) from error
    # The hub's client raises errors of its own, of the HTTP client, and OSError.
    except Exception as error:
        raise WeightsError(
            f"{repo} is no folder here, and could not be fetched from the hub "
            f"({type(error).__name__}: {error}). Check the name and the network; a "
            "gated repository needs `hf auth login`. On a machine without network, "
            f"run `hf download {repo}` on another one and give the folder"
        ) from error
    return Path(folder)


def _load_config(folder: Path, architecture: Architecture) -> Any:
    import transformers

    family = architecture.value
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder} holds no config.json; give a folder written by save_pretrained"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON: {error}; fetch it again") from error
    model_type = raw.get("model_type")
    if model_type not in family.model_types:
        raise WeightsError(
            f"{folder} holds a model of type {model_type!r}, not {family.label} "
            f"({' or '.join(family.model_types)}); choose the backend that fits, or "
            f"weights such as {family.example}"
        )
    if architecture is Architecture.SAM3_TRACKER and raw.get("tracker_config"):
        raw = raw["tracker_config"]
    raw = {key: value for key, value in raw.items() if key != "model_type"}
    for part in ("prompt_encoder_config", "mask_decoder_config"):
        raw[part] = {k: v for k, v in raw.get(part, {}).items() if k != "model_type"}
    try:
        return getattr(transformers, family.config_class)(**raw)
    # Each configuration has checks and error types of its own.
    except Exception as error:
        raise WeightsError(
            f"{path} is no configuration of {family.label}: {error}"
        ) from error


def _load_model(folder: Path, config: Any, architecture: Architecture) -> Any:
    import transformers

    family = architecture.value
    try:
        model, report = getattr(transformers, family.model_class).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except ImportError as error:
        raise WeightsError(f"{folder} needs another package: {error}") from error
    # Corrupt files surface as errors of safetensors, transformers or the system.
    except Exception as error:
        raise WeightsError(
            f"the weights in {folder} cannot be read ({error}); fetch them again"
        ) from error
    mismatched = [
        key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]
    ]
    wrong = [
        f"{what}: {_some(keys)}"
        for what, keys in (
            ("missing", report["missing_keys"]),
            ("unexpected", report["unexpected_keys"]),
            ("of another shape", mismatched),
        )
        if keys
    ]
    if wrong:
        raise WeightsError(
            f"the weights in {folder} are not those of {family.label}'s video model; "
            + "; ".join(wrong)
            + f". Use a video checkpoint such as {family.example}"
        )
    return model.eval().requires_grad_(False)


def set_image_size(config: Any, image_size: int) -> None:
    """Makes a configuration take images of another size; weights don't depend on it.

    Args:
        config: of a video model; changed in place.
        image_size: side of the square that frames are resized to, in pixels.

    Raises:
        WeightsError: when the model's grids cannot have that size.
    """
    patch = int(config.prompt_encoder_config.patch_size)
    # Hiera halves three times from stride 4, and its first windows are 8 wide.
    step = 2 * patch
    if image_size <= 0 or image_size % step:
        raise WeightsError(
            f"image_size {image_size} does not fit this model; choose a multiple of "
            f"{step}, such as {32 * patch}, {48 * patch} or {64 * patch}"
        )
    config.image_size = image_size
    if config.model_type.startswith("sam3"):
        return  # its configuration passes the size on by itself
    config.prompt_encoder_config.image_size = image_size
    vision = config.vision_config
    grid = image_size // patch
    vision.backbone_feature_sizes = [
        [side, side] for side in (4 * grid, 2 * grid, grid)
    ]
    if hasattr(vision.backbone_config, "image_size"):
        vision.backbone_config.image_size = [image_size, image_size]
    config.memory_attention_rope_feat_sizes = [grid, grid]


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _sha256(folder: Path) -> str:
    """Of the weights' file; of the files' sums where there are several."""
    sums = [sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("".join(sums).encode()).hexdigest()
