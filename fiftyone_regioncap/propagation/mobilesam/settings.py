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
        finest: Longest side, in the same unit, that the frame is encoded at when only
            the searched part of it has to be, and objects fill little of it; ``side``
            or less encodes no finer. 896 instead of 768: +.015 on seven clips, 1024:
            +.03 on six and -.14 on one, where ground is dragged along.
        budget: Cells of that part at most, as a share of those of the whole frame at
            ``side``.
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
        kept_trust: Minimum trust in an object's mask on them, in [0, 1].
        remembered: A frame is remembered when the decoder's and the carried mask of an
            object have at least this IoU. A higher bar loses small and fast objects.
        reach: Distance from its last mask within which an object is searched; a lost
            object is searched everywhere. 8/64 instead of 12/64: no difference, less
            time.
        recency: Bonus on the similarity of cells of recent frames, and of the latest of
            several prompts: objects change, and corrections outvote.
        distance: Penalty on the similarity of cells at ``radius`` or more from their
            place, relative to the object's center, and of background also to the frame;
            less by the square of the distance. Without: look-alikes .676; for recent
            frames alone .696; for all .75. Background by the frame: look-alikes +.035.
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
        fragment: Parts smaller than this share of the largest are dropped. .1: -.06 on
            one clip, where ground is dragged along, .003 more on two others.
        agreement: Least IoU of the decoder's mask with the carried one to be trusted.
        contradiction: A new prompt drops an object's older one when what that one says
            of the frame has a lower IoU with it.
        familiar: Mean similarities of a mask's cells to the object's on prompted and
            kept frames between which the trust in it rises from 0 to the agreement of
            the two masks. After cuts it was .42 to .68, on the object's own frames .7
            to .97.
        visible: Minimum trust in a mask that is emitted, in [0, 1].
        certain: Mean certainties of the carried mask between which its score rises from
            0 to the trust. Where like objects meet, matches speak for both: AUC of the
            score on crossings .872 without, .945 with it; on seven children .937, .995.
    """

    side: int = 768
    finest: int = 896
    budget: float = 1.0
    reduced_precision: bool | None = None
    dimensions: int = 128
    recent: int = 3
    kept: int = 1
    kept_every: int = 5
    kept_trust: float = 0.5
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
    fragment: float = 0.3
    agreement: float = 0.5
    contradiction: float = 0.6
    familiar: tuple[float, float] = (0.4, 0.85)
    visible: float = 0.1
    certain: tuple[float, float] = (0.6, 0.92)


PRESETS: Final[dict[Preset, Settings]] = {
    "fast": Settings(side=448, finest=768, budget=1.25),
    "balanced": Settings(),
    "best": Settings(side=1024, finest=1024),
}
