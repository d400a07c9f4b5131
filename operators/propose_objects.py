"""The operator ``propose_objects``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap import api
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.jobs import Summary
from fiftyone_regioncap.propagation.proposals import ProposalOptions
from fiftyone_regioncap.propagation.registry import PROPAGATORS

from . import _forms, _parts
from ._operator import JobOperator


class ProposeObjects(JobOperator):
    """Finds the objects of videos that have no prompts."""

    name = "propose_objects"
    label = "Propose objects"
    description = "Find the objects of videos that have no prompts"
    action = "Propose objects for"

    def ask(self, inputs: types.Object, ctx: Any) -> str | None:
        """Adds the output, the model, and what counts as an object."""
        defaults = ProposalOptions()
        _forms.output_field(
            inputs,
            ctx,
            "prompts",
            default="frames.prompts",
            label="Prompts",
            existing=[],
            taken=[],
        )
        _forms.pick_backend(inputs, ctx, PROPAGATORS, label="Model")
        inputs.int(
            "every", default=defaults.every, min=1, label="Frames between key frames"
        )
        inputs.int("max_objects", default=defaults.max_objects, min=1, label="At most")
        inputs.bool("overwrite", default=False, label="Do complete samples again")
        return None

    def job(
        self,
        samples: Any,
        params: Mapping[str, Any],
        listener: ProgressListener | bool,
        cancel: threading.Event | None,
    ) -> Summary:
        """Finds objects."""
        load, defaults = _parts.load_options(params, "propagator"), ProposalOptions()
        return api.propose(
            samples,
            output=params.get("prompts") or "frames.prompts",
            propagator=params.get("propagator") or "auto",
            weights=load.weights,
            device=load.device,
            options=ProposalOptions(
                every=params.get("every") or defaults.every,
                max_objects=params.get("max_objects") or defaults.max_objects,
            ),
            overwrite=bool(params.get("overwrite")),
            progress=listener,
            cancel=cancel,
        )
