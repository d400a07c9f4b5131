"""The lists of names that come with a checkpoint: tags, attributes, classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fiftyone_regioncap.captioning.dynrefer.texts import (
    Attribute,
    read_attributes,
    read_classes,
    read_lines,
)
from fiftyone_regioncap.captioning.dynrefer.weights import PUBLISHED, WHERE, Files
from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary
from fiftyone_regioncap.system import assets

PUBLISHED_TAGS = 4585
"""Names in the tag list of Recognize Anything that the authors' checkpoints know."""

CLIP_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's file with CLIP's vocabulary, and the name of the asset."""


def clip_vocabulary(files: Files, given: str | Path | None) -> ClipVocabulary:
    """Returns CLIP's vocabulary: as given, from the folder, or from the assets."""
    found = given or files.find("clip_tokenizer", CLIP_VOCABULARY)
    return ClipVocabulary.load(found or assets.fetch(CLIP_VOCABULARY))


def tag_names(files: Files, given: tuple[str, ...] | str | None) -> tuple[str, ...]:
    """Returns the tag list, as long as the checkpoint's.

    The checkpoint itself doesn't say how long that is: the folder's own list, its
    ``config.json`` (``num_tags``) or its published name does.

    Raises:
        WeightsError: If there is no list, or one of another length.
    """
    path = files.find("tag_list.txt", "ram_tag_list.txt")
    own = read_lines(path) if path else None
    if given is None and own is None:
        raise WeightsError(
            f"{files.folder} has no tag_list.txt; put ram_tag_list.txt of Recognize "
            f"Anything there ({PUBLISHED_TAGS} names). {WHERE}"
        )
    if given is None:
        tags = own or ()
    else:
        tags = read_lines(Path(given)) if isinstance(given, str) else given
    wanted = files.settings.get("num_tags")
    if wanted is None and files.trained.name in PUBLISHED:
        wanted = PUBLISHED_TAGS
    if wanted is None:
        wanted = len(own or tags)
    if not isinstance(wanted, int):
        raise WeightsError(f"{files.config}: num_tags is {wanted!r}; give a number")
    if len(tags) != wanted:
        raise WeightsError(
            f"the tag list has {len(tags)} names, the checkpoint {files.trained.name} "
            f"was trained with {wanted}; give its own list, in its order. For names of "
            "your own use class_names"
        )
    return tags


def attribute_names(files: Files) -> tuple[Attribute, ...]:
    """Returns the attributes that the folder lists.

    Raises:
        WeightsError: If it lists none.
    """
    path = files.find("attributes.json", "ovad2000.json")
    if path is None:
        raise WeightsError(
            f"{files.folder} has no attributes.json; put OVAD's ovad2000.json or its "
            '"attributes" alone there, or leave "attributes" out of the tasks'
        )
    return read_attributes(path)


def category_names(files: Files, given: Sequence[str] | None) -> Sequence[str]:
    """Returns class names as given, or those of the folder; none where it has none."""
    if given is not None:
        return given
    path = files.find("classes.json", "coco.json")
    return read_classes(path) if path else ()
