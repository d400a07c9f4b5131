"""What fits on a GPU: the models of a job, or the training of one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import fields_of
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.jobs.options import PlanOptions
from fiftyone_regioncap.models.devices import (
    CARDS,
    DTYPES,
    GIB,
    Gpu,
    choose_device,
    choose_dtype,
    default_dtype,
    find_card,
    free_memory,
    gpu_fault,
    gpus,
)
from fiftyone_regioncap.models.planning import (
    ARITHMETIC,
    READING,
    SPARE,
    Footprint,
    ModelPlan,
    Phase,
    Plan,
    bytes_of,
    metered,
    parameters_of,
    plan_model,
)
from fiftyone_regioncap.models.registry import AUTO, ModelCard, ModelRegistry, ModelSpec
from fiftyone_regioncap.propagation.registry import PROPAGATORS

STATES = 16
"""Bytes of a parameter that trains: float32, its gradient, AdamW's two moments."""


def plan(
    options: PlanOptions,
    *,
    propagator: ModelSpec | None = None,
    captioner: ModelSpec | None = None,
    embedder: ModelSpec | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Plan:
    """Says what fits on a card, how many rows at once, and how fast it can be.

    Args:
        options: The card, and what is planned.
        propagator: Model that carries masks on.
        captioner: Model that describes. Without any model, those of the main job.
        embedder: Captioner whose embeddings of regions are wanted.
        listener: Not called: it takes seconds.
        cancel: Not looked at.

    Raises:
        OptionError: When there is no such card, or nothing to train.
        BackendError: When this machine has no such device.
    """
    roles: dict[str, tuple[ModelRegistry[Any], ModelSpec | None]] = {
        "propagator": (PROPAGATORS, propagator),
        "captioner": (CAPTIONERS, captioner),
        "embedder": (CAPTIONERS, embedder),
    }
    if propagator is captioner is embedder is None:
        roles = {
            "propagator": (PROPAGATORS, ModelSpec()),
            "captioner": (CAPTIONERS, ModelSpec()),
        }
    chosen = {
        role: (registry.choose()[0] if spec.name == AUTO else registry[spec.name], spec)
        for role, (registry, spec) in roles.items()
        if spec is not None
    }
    if options.training and captioner is None:
        raise OptionError("name the captioner whose training is planned")
    named = {spec.device for _, spec in chosen.values()} - {None}
    gpu, free, notes = _card(options.gpu, next(iter(named), None))
    needs: list[tuple[str, str, Footprint | None, torch.dtype]] = []
    for role, (card, spec) in chosen.items():
        given = card.options.from_mapping(spec.options, f"{role} {card.name}")
        dtype = _dtype(getattr(given, "dtype", None), gpu)
        weights = spec.weights or card.weights
        if options.training and role == "captioner":
            made = _training(card, weights, dtype, options)
            needs.append(("training of", card.name, made, dtype))
            continue
        sizes = None if card.footprint is None else resolve(card.footprint)
        needed = None if sizes is None else sizes(weights, given, dtype)
        needs.append((role, card.name, needed, dtype))
    left = free - sum(made.weights for _, _, made, _ in needs if made is not None)
    found = Plan(
        gpu,
        free,
        [
            ModelPlan(role, name)
            if made is None
            else plan_model(role, name, made, dtype, gpu, left)
            for role, name, made, dtype in needs
        ],
    )
    notes += [*_advice(found, chosen), *_assumptions(found)]
    return Plan(gpu, free, found.models, notes)


def _card(named: str | None, device: str | None) -> tuple[Gpu | None, float, list[str]]:
    """Returns the card to plan for, its free bytes, and what is to be known of it."""
    if named is not None:
        card = find_card(named)
        spare = f"{SPARE:.0%} of the card is left to driver and CUDA."
        return card, card.memory * GIB * (1 - SPARE), [spare]
    place = choose_device(device)
    if place.type != "cuda":
        fault = gpu_fault()
        notes = []
        if fault is not None and device is None:
            notes = [f"No GPU is used: {fault.found}; to change that, {fault.advice}."]
        return None, free_memory(place), notes
    cards = gpus()
    card = cards[str(torch.device("cuda", place.index or 0))]
    assert card.free is not None
    notes = []
    taken = card.memory - card.free / GIB
    if taken > card.memory / 4:
        notes.append(
            f"Other programs hold {taken:.1f} GiB of {card.device}; nvidia-smi lists "
            "them."
        )
    if len({round(one.memory) for one in cards.values()}) > 1:
        told = ", ".join(f"{name} {one}" for name, one in cards.items())
        notes.append(
            f"The cards differ ({told}): workers plan for each its own, and training "
            "with several processes is bounded by the smallest."
        )
    return card, card.free, notes


def _dtype(given: str | None, gpu: Gpu | None) -> torch.dtype:
    """Returns what a model computes in, as it would choose on that card."""
    if gpu is not None and gpu.device:
        return choose_dtype(given, torch.device(gpu.device))
    if given is not None:
        return DTYPES[given]
    return default_dtype(gpu is not None and gpu.bfloat16)


def _training(
    card: ModelCard, weights: str | None, dtype: torch.dtype, options: PlanOptions
) -> Footprint:
    """Returns what a training needs: states, and the activations of a batch.

    Raises:
        OptionError: When the captioner has no training.
        BackendError: When its sizes are not known before it is loaded.
    """
    from fiftyone_regioncap.captioning.trainable import trained

    if card.training is None:
        raise OptionError(f"{card.name} has no training")
    own = card.training_options()
    network, batch = resolve(card.training).without_weights(weights, dtype, own)
    network.train()
    if options.gradient_checkpointing:
        network.checkpoint_activations()
    learned = trained(network)
    trains = sum(parameter.numel() for parameter in learned.values())
    with metered() as meter:
        network(**batch)["loss"].backward()
    row, flops = meter.peak, meter.flops
    stored = bytes_of(network)

    def phases(rows: int) -> list[Phase]:
        return [Phase("step", rows * flops, 3 * stored, 0)]

    rows = options.batch_size
    return Footprint(
        name=f"{trains:,} parameters train",
        parameters=parameters_of(network),
        weights=stored + (STATES - dtype.itemsize) * trains,
        row=row,
        rows={"cuda": rows, "cpu": rows},
        row_name="captions",
        unit="captions",
        phases=phases,
        made=float,
        image_size=0,
        assumptions=(
            f"What trains takes {STATES} bytes a parameter: float32, its gradient and "
            "AdamW's two moments.",
        ),
    )


def _advice(
    found: Plan, chosen: Mapping[str, tuple[ModelCard, ModelSpec]]
) -> Iterator[str]:
    """Yields what to choose where something doesn't fit."""
    training = [one for one in found.models if one.role == "training of"]
    for one in training:
        assert one.footprint is not None
        wanted = one.footprint.rows["cuda"]
        if found.ok and one.rows < wanted:
            yield (
                f"{one.rows} of batch_size={wanted} fit: give batch_size={one.rows} "
                "and as much more accumulation, or gradient_checkpointing."
            )
    if found.ok:
        return
    choices = ["gradient_checkpointing"] if training else []
    for role, (card, spec) in chosen.items() if not training else ():
        able = {field.name for field in fields_of(card.options)}
        if "quantization" in able and not spec.options.get("quantization"):
            choices.append(f"quantization=4bit for the {role}")
        if "image_size" in able:
            choices.append(f"a smaller image_size for the {role}")
    large = [
        card.name
        for card in reversed(CARDS)
        if card.memory * GIB * (1 - SPARE) >= found.needs
    ]
    if large:
        choices.append(f"a card with more memory, such as {large[0]}")
    choices.append("a smaller model, or device=cpu")
    yield f"It does not fit. Choose {'; '.join(choices)}."


def _assumptions(found: Plan) -> Iterator[str]:
    """Yields what is reckoned with."""
    if any(one.rates for one in found.models):
        yield (
            f"Speed is reckoned with {ARITHMETIC:.0%} of the data sheet's matrix "
            f"throughput and {READING:.0%} of its memory bandwidth, and not measured."
        )
    for one in found.models:
        if one.footprint is not None:
            yield from (f"{one.name}: {text}" for text in one.footprint.assumptions)
