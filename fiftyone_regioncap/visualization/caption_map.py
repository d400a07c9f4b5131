"""A visualization of the captions of videos that FiftyOne's Embeddings panel opens.

FiftyOne has maps of samples, and of the labels of images. A map of clips is one of
samples, but the panel looks for what points are colored by among the samples of the
dataset, where clips are not. Captions of videos are labels, with ids and attributes
like those of images; all that stands against a map of them is that FiftyOne's results
refuse to find the labels of a view of videos. These find them.
"""

from __future__ import annotations

from collections.abc import Sequence

import fiftyone as fo
import fiftyone.core.collections as foco
import numpy as np
from fiftyone.brain.visualization import (
    ManualVisualizationConfig,
    VisualizationResults,
)
from numpy.typing import NDArray


class CaptionMap(VisualizationResults):
    """Points of captions, one per label of the field ``config.patches_field``."""

    def use_view(
        self,
        sample_collection: foco.SampleCollection,
        allow_missing: bool = True,
        warn_missing: bool = False,
    ) -> CaptionMap:
        """Takes the points of the captions in a view; see FiftyOne's own method.

        Args:
            sample_collection: Videos, or clips of the captions.
            allow_missing: Whether captions may be in the view and not on the map.
            warn_missing: Not used; they are many after every run of a captioner.

        Raises:
            ValueError: If some are missing and may not be.
        """
        keep: NDArray[np.int64] | slice = slice(None)
        known = None
        if not isinstance(sample_collection, fo.Dataset):
            place = {label_id: n for n, label_id in enumerate(self.label_ids.tolist())}
            shown = _label_ids(sample_collection, self.config.patches_field)
            known = np.array([label_id in place for label_id in shown], bool)
            keep = np.array([place[i] for i in shown if i in place], np.int64)
            if known.all():
                known = None
            elif not allow_missing:
                raise ValueError(f"{(~known).sum()} captions are not on the map")
        self._curr_view = sample_collection
        self._curr_points = self.points[keep]
        self._curr_sample_ids = self.sample_ids[keep]
        self._curr_label_ids = self.label_ids[keep]
        self._curr_keep_inds = None if isinstance(keep, slice) else keep
        self._curr_good_inds = known
        return self


def save(
    samples: foco.SampleCollection,
    field: str,
    key: str,
    points: NDArray[np.float32],
    sample_ids: Sequence[str],
    label_ids: Sequence[str],
) -> CaptionMap:
    """Saves a map as a brain run.

    Args:
        samples: The videos.
        field: Field of the captions.
        key: Key of the run.
        points: Positions in the plane, (N, 2).
        sample_ids: Ids of the videos, one for each point.
        label_ids: Ids of the captions, one for each point.
    """
    config = ManualVisualizationConfig(patches_field=field)
    method = config.build()
    method.register_run(samples, key)
    results = CaptionMap(
        samples,
        config,
        key,
        points,
        sample_ids=np.array(sample_ids),
        label_ids=np.array(label_ids),
    )
    method.save_run_results(samples, key, results)
    return results


def _label_ids(samples: foco.SampleCollection, field: str) -> list[str]:
    """Ids of a field's labels; none where a view, such as one of frames, lacks it."""
    if not samples.has_field(field):
        return []
    _, path = samples._get_label_field_path(field, "id")
    return [label_id for label_id in samples.values(path, unwind=True) if label_id]
