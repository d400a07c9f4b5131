"""Loads trackers' weights from a folder, the cache or the hub, strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import (
    build_config,
    check_report,
    check_sizes,
    config_errors,
    fetch_checkpoint,
    is_all_nan,
    read_json,
    revision_of,
)
from fiftyone_regioncap.propagation.sam2 import configuration


@dataclass(frozen=True)
class Architecture:
    """The kind of model that a checkpoint must hold.

    Attributes:
        label: Name of the architecture for people.
        model_types: Values of ``model_type`` in ``config.json`` that stand for it. SAM
            2's repositories may carry the configuration of the image model, whose
            weights' names are a part of the video model's.
        family: Prefix of the names of transformers' classes.
        example: A repository that holds it.
    """

    label: str
    model_types: tuple[str, ...]
    family: str
    example: str | None


SAM2 = Architecture(
    "SAM 2", ("sam2_video", "sam2"), "Sam2Video", configuration.SAM2.weights
)
EDGETAM = Architecture(
    "EdgeTAM",
    ("edgetam_video", "edgetam"),
    "EdgeTamVideo",
    configuration.EDGETAM.weights,
)
SAM3_TRACKER = Architecture(
    "SAM 3's tracker",
    ("sam3_tracker_video", "sam3_video"),
    "Sam3TrackerVideo",
    configuration.SAM3_TRACKER.weights,
)


@dataclass(frozen=True)
class LoadedWeights:
    """A model with its weights.

    Attributes:
        model: The transformers model, float32, on the CPU.
        name: Name of the repository or folder.
        revision: Hub commit, or the sha256 of the weights' files.
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
        path_or_repo: A folder with ``config.json`` and safetensors, or a repository.
        architecture: Architecture that the checkpoint must hold.
        image_size: Side of the square that frames are resized to; None for the
            checkpoint's own.
        revision: Commit, tag or branch of the repository.

    Raises:
        WeightsError: When it is absent, corrupt, or of another architecture.
    """
    folder = fetch_checkpoint(
        path_or_repo,
        files=("config.json", "*.safetensors", "*.safetensors.index.json"),
        revision=revision,
        advice="Give a folder written by save_pretrained, or a repository such as "
        f"{architecture.example}",
    )
    config = load_config(folder, architecture)
    if image_size is not None:
        set_image_size(config, image_size)
    model = _load_model(folder, config, architecture)
    local = Path(path_or_repo).expanduser().is_dir()
    return LoadedWeights(
        model, folder.name if local else path_or_repo, revision_of(folder)
    )


def load_config(folder: Path, architecture: Architecture) -> Any:
    """Reads the configuration of a checkpoint.

    Raises:
        WeightsError: When it is absent, unreadable, or of another architecture.
    """
    import transformers

    path = folder / "config.json"
    raw = read_json(path, "give a folder written by save_pretrained")
    model_type = raw.get("model_type")
    if model_type not in architecture.model_types:
        raise WeightsError(
            f"{folder} holds a model of type {model_type!r}, not {architecture.label} "
            f"({' or '.join(architecture.model_types)}); choose the backend that fits, "
            f"or weights such as {architecture.example}"
        )
    if architecture is SAM3_TRACKER and raw.get("tracker_config"):
        raw = raw["tracker_config"]
    with config_errors(str(path)):
        _check_sizes(raw, str(path))
        raw = {key: value for key, value in raw.items() if key != "model_type"}
        for part in ("prompt_encoder_config", "mask_decoder_config"):
            named = raw.get(part, {}).items()
            raw[part] = {k: v for k, v in named if k != "model_type"}
    kind = getattr(transformers, architecture.family + "Config")
    return build_config(kind, raw, str(path))


def _check_sizes(values: dict[str, Any], where: str) -> None:
    """Checks the sizes in all parts of a configuration, and the depth of its stacks."""
    check_sizes(values, where)
    for name, part in values.items():
        if isinstance(part, dict):
            _check_sizes(part, f"{where}: {name}")
        elif name.endswith("_layers") or name == "blocks_per_stage":
            for count in part if isinstance(part, list) else [part]:
                check_sizes({"num_layers": count}, f"{where}: {name}")


def _load_model(folder: Path, config: Any, architecture: Architecture) -> Any:
    import transformers

    kind = getattr(transformers, architecture.family + "Model")
    try:
        # Transformers renames what was published under other names, and ties weights.
        model, report = kind.from_pretrained(
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
    check_report(
        folder,
        report["missing_keys"],
        report["unexpected_keys"],
        [k if isinstance(k, str) else k[0] for k in report["mismatched_keys"]],
        [name for name, tensor in model.state_dict().items() if is_all_nan(tensor)],
        f"Give a video checkpoint of {architecture.label} such as "
        f"{architecture.example}",
    )
    return model.eval().requires_grad_(False)


def set_image_size(config: Any, image_size: int) -> None:
    """Makes a configuration take images of another size; weights don't depend on it.

    Args:
        config: Configuration of a video model; changed in place.
        image_size: Side of the square that frames are resized to, in pixels.

    Raises:
        WeightsError: When the model's grids cannot have that size.
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
