"""The loop of stages that search videos for what is not marked: objects, shots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.dataset import status
from fiftyone_regioncap.dataset.metadata import file_digest
from fiftyone_regioncap.dataset.status import Span
from fiftyone_regioncap.dataset.targets import Sample, Target, name_of
from fiftyone_regioncap.jobs.base import RunContext, SampleStage
from fiftyone_regioncap.jobs.checkpoints import signature

OptionsT = TypeVar("OptionsT", bound=Options)


class SearchStage(SampleStage[OptionsT]):
    """A stage that searches videos, again where that was done in another way.

    Attributes:
        found: What it finds, for messages, such as ``"shots"``.
    """

    found: ClassVar[str]

    def facts(self) -> dict[str, Any]:
        """Returns what the result depends on beside options and file: the model."""
        return {}

    def spans(self, target: Target) -> Sequence[Span]:
        """Returns the ranges of a video that are searched, each on its own."""
        return [(0, None)]

    def require_unedited(self, sample: Sample, spans: Sequence[Span]) -> None:
        """Makes sure that a person has edited nothing that would be replaced.

        Raises:
            FieldError: When somebody has.
        """
        raise NotImplementedError

    def search(self, sample: Sample, spans: Sequence[Span], context: RunContext) -> Any:
        """Returns what is found on some ranges; writes nothing."""
        raise NotImplementedError

    def write(
        self, sample: Sample, spans: Sequence[Span], found: Any, context: RunContext
    ) -> int:
        """Writes what was found, and counts it.

        Returns:
            Number of labels that were replaced.
        """
        raise NotImplementedError

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Searches the ranges of a sample that were not searched in this way."""
        options: Any = self._options
        output, overwrite = options.output, options.overwrite
        made_from = {
            **self.facts(),
            "options": options.result_facts(),
            "file": file_digest(sample.filepath),
        }
        origin = signature(made_from)
        kept = status.read_kept(sample, output)
        spans = [
            span
            for span in self.spans(target)
            if overwrite or not kept.searched(span, origin)
        ]
        if spans:
            self.require_unedited(sample, spans)
            found = self.search(sample, spans, context)
            # While labels are replaced, nothing says what they were made from.
            status.write_status(sample, output, "partial")
            old = [key for span in spans for key in kept.overlapping(span)]
            status.write_origins(sample, output, dict.fromkeys(old))
            replaced = self.write(sample, spans, found, context)
            made = {status.origin_key(status.SEARCH, *s): origin for s in spans}
            status.write_origins(sample, output, made)
            if old and not overwrite:
                context.redone(self.found, name_of(sample), replaced)
        if spans or not kept.complete:
            status.write_status(sample, output, "complete")
        return bool(spans)
