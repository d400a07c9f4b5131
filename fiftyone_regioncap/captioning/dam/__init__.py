"""DAM, the Describe Anything model, batched over objects and videos."""

from fiftyone_regioncap.captioning.dam.model import DAM, Generated

__all__ = ["DAM", "Generated"]
