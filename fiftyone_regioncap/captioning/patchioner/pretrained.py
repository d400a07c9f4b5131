"""Models of transformers from folders or the hub, with nothing left to chance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import check_report, check_sizes, read_json


def load_pretrained(kind: Any, source: str | Path, what: str) -> Any:
    """Loads a model, whose weights must all be there and be numbers.

    Args:
        kind: A class of transformers with ``from_pretrained``.
        source: A folder or a hub repository.
        what: Description of the model, for messages.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: If there is no such model, or weights are missing or only NaN.
    """
    config = Path(source) / "config.json"
    if config.is_file():
        values = read_json(config)
        for part in (values, *values.values()):
            if isinstance(part, Mapping):
                check_sizes(part, str(config))
    try:
        model, info = kind.from_pretrained(str(source), output_loading_info=True)
    # Damaged files and odd values raise errors of many kinds.
    except Exception as error:
        raise WeightsError(
            f"the {what} {source} cannot be loaded: {error}; give a folder or a hub "
            "repository"
        ) from error
    empty = [n for n, p in model.named_parameters() if p.numel() and p.isnan().all()]
    check_report(source, info["missing_keys"], empty=empty)
    return model.eval()
