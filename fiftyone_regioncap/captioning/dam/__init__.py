"""DAM, the Describe Anything model, batched over objects and videos."""

from fiftyone_regioncap.captioning.dam.captioner import DamCaptioner
from fiftyone_regioncap.captioning.dam.model import DAM, Generated

__all__ = ["DAM", "DamCaptioner", "Generated"]
