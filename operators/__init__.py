"""The plugin's operators and panels, one a file; thin over the library."""

from __future__ import annotations

from ._review_prompts import ChooseCaptions, EditCaption
from .caption_everything import CaptionEverything
from .caption_regions import CaptionRegions
from .caption_tracks import CaptionTracks
from .check_captions import CheckCaptions
from .embed_captions import EmbedCaptions
from .embed_regions import EmbedRegions
from .evaluate_captions import EvaluateCaptions
from .export_captions import ExportCaptions
from .extract_facets import ExtractFacets
from .import_captions import ImportCaptions
from .make_unique import MakeUnique
from .propagate_and_caption import PropagateAndCaption
from .propagate_masks import PropagateMasks
from .propose_objects import ProposeObjects
from .review_panel import ChangeAll, ReviewPanel
from .search_captions import SearchCaptions
from .search_panel import SearchPanel
from .triage_captions import TriageCaptions

OPERATORS = (
    ProposeObjects,
    PropagateMasks,
    CaptionTracks,
    PropagateAndCaption,
    CaptionRegions,
    CaptionEverything,
    MakeUnique,
    SearchCaptions,
    EmbedCaptions,
    EmbedRegions,
    ExtractFacets,
    CheckCaptions,
    TriageCaptions,
    EvaluateCaptions,
    ExportCaptions,
    ImportCaptions,
    ReviewPanel,
    EditCaption,
    ChooseCaptions,
    ChangeAll,
    SearchPanel,
)
