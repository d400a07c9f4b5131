"""Settings of tracking, and the presets that users choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Preset: TypeAlias = Literal["fast", "balanced", "best"]


@dataclass(frozen=True)
class Settings:
    """Sets how objects are tracked.

    What is measured in J below is the mean over the tuning clips and over look-alikes
    made of them, first 20 frames, apart from what else is said; docs/performance.md
    tells how. Lengths are shares of the longest side.

    Attributes:
        side: Longest side of the encoder's input in pixels, a multiple of 16, where
            objects may be anywhere in the frame. 1024 is what MobileSAM was trained at.
        zoom: How many times finer than that the part of the frame that is searched is
            encoded at most, where it then has no more cells than the whole frame at
            ``side``; 1 encodes whole frames. 12/7 of 448: +.05 on look-alikes and
            crossings. 4/3 of 768: +.014, but a ball that was prompted anew was lost.
            The part at 768: +.006, but -.1 on one of four clips that are reported.
        reduced_precision: Whether to encode and match in bfloat16; None means where the
            processor has instructions for it, which halves the time.
        dimensions: Principal components kept of a cell's features. 128 of 416: no
            difference in J, a third of the time to match.
        recent: Number of latest frames remembered. 3 instead of 4: no difference, less
            time.
        kept: Number of older frames remembered, the latest on which an object was
            surely seen. 0 to 4 make no difference within 20 frames; one is kept for
            objects that come back after longer.
        kept_every: Number of frames between those.
        kept_score: Minimum score of an object on them, in [0, 1].
        remembered: A frame is remembered when the decoder's and the carried mask of an
            object have at least this IoU. A higher bar loses small and fast objects.
        reach: Distance from its last mask within which an object is searched; a lost
            object is searched everywhere. 8/64 instead of 12/64: no difference, less
            time.
        recency: Bonus on the similarity of cells of recent frames, and of the latest of
            several prompts: objects change, and corrections outvote.
        distance: Penalty on the similarity of cells at ``radius`` or more from their
            place, relative to the object's center; less by the square of the distance.
            Without: look-alikes .676; for recent frames alone .696; for all .75.
        radius: Distance from which ``distance`` applies in full.
        neighbors: Number of best matches used for each cell.
        temperature: Temperature of the softmax over the matches.
        anchor: How much what is carried from prompted frames alone counts, where it is
            more than what is carried from all; .1 of J. It keeps masks from shrinking.
        anchor_reach: Cells around the carried mask where it counts.
        margin: Cells that the decoder sees around the carried box, as a share of its
            longer side. All: +.002, three times the time with eight objects.
        target: How much of the object's mean embedding is added to the decoder's
            tokens. 0: -.005 from the middle both ways, most where a rider or dancer
            loses limbs.
        blend: Share of the carried mask mixed into the decoder's logits, which lose
            what is thin. 0: -.007, .5: -.008.
        fragment: Parts smaller than this share of the largest are dropped.
        agreement: Least IoU of the decoder's mask with the carried one to be trusted.
        contradiction: A new prompt drops an object's older one when what that one says
            of the frame has a lower IoU with it.
        familiar: Mean similarities of a mask's cells to the object's on prompted and
            kept frames at which the score becomes 0, and stays the agreement of the two
            masks. After cuts it was .42 to .68, on the object's own frames .7 to .97.
        visible: Minimum score of a mask that is emitted, in [0, 1].
    """

    side: int = 768
    zoom: float = 1.0
    reduced_precision: bool | None = None
    dimensions: int = 128
    recent: int = 3
    kept: int = 1
    kept_every: int = 5
    kept_score: float = 0.5
    remembered: float = 0.4
    reach: float = 8 / 64
    radius: float = 12 / 64
    recency: float = 0.03
    distance: float = 0.1
    neighbors: int = 8
    temperature: float = 0.01
    anchor: float = 0.8
    anchor_reach: int = 3
    margin: float = 0.3
    target: float = 1.0
    blend: float = 0.3
    fragment: float = 0.1
    agreement: float = 0.5
    contradiction: float = 0.6
    familiar: tuple[float, float] = (0.4, 0.85)
    visible: float = 0.1


PRESETS: Final[dict[Preset, Settings]] = {
    "fast": Settings(side=448, zoom=12 / 7),
    "balanced": Settings(),
    "best": Settings(side=1024),
}
