"""What the package can do: one declaration per operation, read by every door.

The SDK's functions (:mod:`fiftyone_regioncap.api`), the shell's commands
(:mod:`fiftyone_regioncap.cli`) and the App's operators are made from these, so that
what one of them offers, the others offer by the same name. Nothing heavy is imported
before an operation is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import OptionField, Options, fields_of, unknown
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.models.registry import AUTO, ModelRegistry, ModelSpec

_ROOMS = "fiftyone_regioncap"

NONE = "none"
"""Stands for no model where None can't be written, as in a shell."""

REGISTRIES = {
    "propagator": f"{_ROOMS}.propagation.registry:PROPAGATORS",
    "captioner": f"{_ROOMS}.captioning.registry:CAPTIONERS",
}


@dataclass(frozen=True)
class ModelChoice:
    """A model that an operation works with.

    Attributes:
        name: Name of the argument; ``<name>_weights`` and ``<name>_options`` too.
        help: What the model is for.
        kind: Which registry it is chosen from.
        default: Name of the default; None when the operation does without by default.
        optional: Whether the operation can do without.
    """

    name: str
    help: str
    kind: str
    default: str | None = AUTO
    optional: bool = False

    @property
    def registry(self) -> ModelRegistry[Any]:
        """Where it is chosen from."""
        return resolve(REGISTRIES[self.kind])


@dataclass(frozen=True)
class Operation:
    """Something that is done to the samples of a dataset or a view.

    Attributes:
        name: Name of the SDK's function.
        operator: Name of the App's operator.
        command: Name of the shell's command.
        label: Title for forms.
        summary: What it does, as a full sentence.
        action: A verb for the App's target picker.
        target: ``"module:Class"`` of its options.
        stages: Stages of the job that it is, in their order, each with the group of
            its options; None where the options are those of the stage.
        run: ``"module:function"`` of what is no job: called with samples, options, and
            by keyword the models, ``listener`` and ``cancel``.
        models: The models that it works with.
        media: Media types of datasets that it can run on.
        positional: Options that the SDK takes by position, and the shell as arguments
            where ``arguments`` says so.
        arguments: Options that the shell takes as arguments.
        streams: Whether it reports progress while it runs.
    """

    name: str
    operator: str
    command: str
    label: str
    summary: str
    action: str
    target: str
    stages: Mapping[str, str | None] = field(default_factory=dict)
    run: str | None = None
    models: tuple[ModelChoice, ...] = ()
    media: tuple[str, ...] = ("video", "group")
    positional: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    streams: bool = True

    @property
    def options(self) -> type[Options]:
        """The class of its options."""
        return resolve(self.target)

    @property
    def fields(self) -> tuple[OptionField, ...]:
        """Its options."""
        return fields_of(self.options)

    @property
    def loading(self) -> type[Options] | None:
        """The options of how all its models are loaded; None where it has none."""
        return resolve(f"{_ROOMS}.models.options:LoadOptions") if self.models else None

    def parameters(self) -> list[str]:
        """The names of everything that it can be told."""
        names = [one.name for one in self.fields]
        for model in self.models:
            names += [model.name, f"{model.name}_weights", f"{model.name}_options"]
        if self.loading is not None:
            names += [one.name for one in fields_of(self.loading)]
        return names

    def parse(self, values: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
        """Validates values by name.

        Args:
            values: As a door gives them; those that are absent have the default.

        Returns:
            The options, and by the name of each model its specification, the loaded
            model that was given, or None.

        Raises:
            OptionError: When a name is unknown or a value doesn't fit.
            BackendError: When there is no such model, or no weights where named.
        """
        known = self.parameters()
        for name in values:
            if name not in known:
                raise OptionError(f"{self.name}: {unknown(name, known)}")
        own = {one.name for one in self.fields}
        options = self.options.from_mapping(
            {name: value for name, value in values.items() if name in own}, self.name
        )
        return options, self._models(values)

    def _models(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if self.loading is None:
            return {}
        names = {one.name for one in fields_of(self.loading)}
        loading: Any = self.loading.from_mapping(
            {name: value for name, value in values.items() if name in names}, self.name
        )
        chosen: dict[str, Any] = {}
        for model in self.models:
            given = values.get(model.name, model.default)
            if given == NONE and model.optional:
                given = None
            if given is not None and not isinstance(given, str):
                chosen[model.name] = given
                continue
            weights = values.get(f"{model.name}_weights")
            own_options = values.get(f"{model.name}_options") or {}
            if given is None and not (weights or own_options):
                chosen[model.name] = None
                continue
            chosen[model.name] = ModelSpec(
                given or AUTO,
                weights,
                loading.device,
                own_options,
                loading.accept_license,
            )
        if loading.weights is not None:
            self._give_weights(chosen, loading.weights)
        for model in self.models:
            if isinstance(chosen[model.name], ModelSpec):
                model.registry.check(chosen[model.name])
        return chosen

    def _give_weights(self, chosen: dict[str, Any], weights: str) -> None:
        """Gives ``weights`` to the one model that they can be meant for.

        Raises:
            OptionError: When that is none or several.
        """
        named = {
            model.name: model.registry[chosen[model.name].name]
            for model in self.models
            if isinstance(chosen[model.name], ModelSpec)
            and chosen[model.name].name != AUTO
        }
        if len(named) > 1:
            named = {name: card for name, card in named.items() if card.missing()}
        if len(named) != 1:
            own = " or ".join(f"{model.name}_weights" for model in self.models)
            raise OptionError(
                f"weights={weights!r}: it is not clear which model they are for; name "
                f"the model, or give {own}"
            )
        (name,) = named
        chosen[name] = ModelSpec(**{**vars(chosen[name]), "weights": weights})


PROPAGATOR = ModelChoice("propagator", "Model that carries masks on.", "propagator")
CAPTIONER = ModelChoice("captioner", "Model that describes.", "captioner")

_DECLARED = (
    Operation(
        name="propose",
        operator="propose_objects",
        command="propose",
        label="Propose objects",
        summary="Find the objects of videos that have no prompts.",
        action="Propose objects for",
        target=f"{_ROOMS}.jobs.options:ProposeOptions",
        stages={"propose": None},
        models=(
            ModelChoice("propagator", "Model that finds the objects.", "propagator"),
        ),
    ),
    Operation(
        name="propagate",
        operator="propagate_masks",
        command="propagate",
        label="Propagate masks",
        summary="Carry the marked objects through videos, as tracks of masks.",
        action="Propagate",
        target=f"{_ROOMS}.jobs.options:PropagateOptions",
        stages={"propagate": None},
        models=(PROPAGATOR,),
        positional=("prompts",),
    ),
    Operation(
        name="caption",
        operator="caption_tracks",
        command="caption",
        label="Caption tracks",
        summary="Describe every track, or every window of it.",
        action="Caption",
        target=f"{_ROOMS}.jobs.options:CaptionOptions",
        stages={"caption": None},
        models=(CAPTIONER,),
        positional=("tracks",),
    ),
    Operation(
        name="propagate_and_caption",
        operator="propagate_and_caption",
        command="propagate-and-caption",
        label="Propagate and caption",
        summary="Mask the marked objects through videos and describe each of them.",
        action="Propagate and caption",
        target=f"{_ROOMS}.jobs.options:PropagateAndCaptionOptions",
        stages={"propagate": "propagate", "caption": "caption"},
        models=(PROPAGATOR, CAPTIONER),
    ),
    Operation(
        name="caption_regions",
        operator="caption_regions",
        command="caption-regions",
        label="Caption regions",
        summary="Describe the labeled regions of images.",
        action="Caption",
        target=f"{_ROOMS}.jobs.options:RegionOptions",
        stages={"caption_regions": None},
        models=(
            CAPTIONER,
            ModelChoice(
                "segmenter",
                "Model that makes masks of boxes and points; none to take boxes as "
                "they are.",
                "propagator",
                optional=True,
            ),
        ),
        media=("image", "group"),
        positional=("field",),
    ),
    Operation(
        name="dense_caption",
        operator="dense_caption",
        command="dense-caption",
        label="Dense captioning",
        summary="Describe all parts of images or frames, and map where a text is.",
        action="Caption",
        target=f"{_ROOMS}.jobs.options:DenseCaptionOptions",
        stages={"caption_densely": None},
        models=(
            ModelChoice(
                "captioner", "Model that describes.", "captioner", "patchioner"
            ),
            ModelChoice(
                "propagator",
                "Model that finds the parts; none for clusters of patches that look "
                "alike.",
                "propagator",
                None,
                optional=True,
            ),
        ),
        media=("video", "image", "group"),
    ),
    Operation(
        name="make_unique",
        operator="make_unique",
        command="make-unique",
        label="Tell objects apart",
        summary="State what tells objects apart that have nearly the same captions.",
        action="Compare",
        target=f"{_ROOMS}.analysis.options:UniqueOptions",
        run=f"{_ROOMS}.analysis.unique:make_unique",
        models=(
            ModelChoice(
                "captioner",
                "Model that is asked for differences first; none states what was "
                "measured.",
                "captioner",
                None,
                optional=True,
            ),
        ),
        media=("video", "image", "group"),
        positional=("captions",),
    ),
    Operation(
        name="search_captions",
        operator="search_captions",
        command="search",
        label="Search captions",
        summary="Find tracks and regions by what was said of them.",
        action="Search",
        target=f"{_ROOMS}.search.options:SearchOptions",
        run=f"{_ROOMS}.api:_search",
        media=("video", "image", "group"),
        positional=("query",),
        arguments=("query",),
        streams=False,
    ),
    Operation(
        name="embed_captions",
        operator="embed_captions",
        command="embed-captions",
        label="Embed captions",
        summary="Put captions on a map; find duplicates, outliers and groups.",
        action="Embed",
        target=f"{_ROOMS}.search.options:EmbedCaptionsOptions",
        run=f"{_ROOMS}.api:_embed_captions",
        media=("video", "image", "group"),
        positional=("captions",),
        streams=False,
    ),
    Operation(
        name="embed_regions",
        operator="embed_regions",
        command="embed-regions",
        label="Embed regions",
        summary="Let captions be searched, mapped and checked by how regions look.",
        action="Embed",
        target=f"{_ROOMS}.jobs.options:EmbedRegionsOptions",
        stages={"embed_regions": None},
        models=(
            ModelChoice("captioner", "Model that embeds.", "captioner", "patchioner"),
        ),
        media=("video", "image", "group"),
        positional=("captions",),
    ),
    Operation(
        name="extract_facets",
        operator="extract_facets",
        command="extract-facets",
        label="Extract facets",
        summary="Make nouns and attributes of captions into lists to filter by.",
        action="Extract",
        target=f"{_ROOMS}.analysis.options:FacetOptions",
        run=f"{_ROOMS}.api:_extract_facets",
        media=("video", "image", "group"),
        positional=("captions",),
        streams=False,
    ),
    Operation(
        name="check_captions",
        operator="check_captions",
        command="check",
        label="Check captions",
        summary="Find captions that contradict measurements, others, or themselves.",
        action="Check",
        target=f"{_ROOMS}.analysis.options:CheckOptions",
        run=f"{_ROOMS}.api:_check_captions",
        media=("video", "image", "group"),
        positional=("captions",),
        streams=False,
    ),
    Operation(
        name="triage_captions",
        operator="triage_captions",
        command="triage",
        label="Triage captions",
        summary="Keep, review or drop captions by a score, and say how good that is.",
        action="Triage",
        target=f"{_ROOMS}.analysis.options:TriageOptions",
        run=f"{_ROOMS}.api:_triage_captions",
        media=("video", "image", "group"),
        positional=("captions",),
        streams=False,
    ),
    Operation(
        name="evaluate_captions",
        operator="evaluate_captions",
        command="evaluate captions",
        label="Evaluate captions",
        summary="Compare captions with references by the metrics of the literature.",
        action="Evaluate",
        target=f"{_ROOMS}.evaluation.options:EvaluateOptions",
        run=f"{_ROOMS}.api:_evaluate_captions",
        media=("video", "image", "group"),
        positional=("references",),
        streams=False,
    ),
    Operation(
        name="export",
        operator="export_captions",
        command="export",
        label="Export captions",
        summary="Write tracks and captions in a format that other tools read.",
        action="Export",
        target=f"{_ROOMS}.exporters.options:ExportOptions",
        run=f"{_ROOMS}.exporters:export",
        positional=("format", "path"),
    ),
    Operation(
        name="import_captions",
        operator="import_captions",
        command="import",
        label="Import captions",
        summary="Read tracks and captions of other tools into fields of the videos.",
        action="Import into",
        target=f"{_ROOMS}.exporters.options:ImportOptions",
        run=f"{_ROOMS}.exporters:import_captions",
        positional=("format", "path"),
    ),
)

OPERATIONS: Mapping[str, Operation] = {one.name: one for one in _DECLARED}
"""The operations by the name of the SDK's function, in the order that people see."""
