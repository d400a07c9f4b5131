"""The plugin's operators and panels; thin over the library."""

from __future__ import annotations

from ._from_picture import PICTURE_OPERATORS
from ._operations import OPERATION_OPERATORS
from ._review_prompts import ChooseCaptions, EditCaption
from ._running import CancelJob
from .jobs_panel import JobsPanel
from .review_panel import ChangeAll, ReviewPanel
from .search_panel import SearchPanel
from .tracks_panel import TracksPanel

OPERATORS = (
    *OPERATION_OPERATORS,
    *PICTURE_OPERATORS,
    ReviewPanel,
    EditCaption,
    ChooseCaptions,
    ChangeAll,
    SearchPanel,
    JobsPanel,
    CancelJob,
    TracksPanel,
)
