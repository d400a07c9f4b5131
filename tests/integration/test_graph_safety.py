"""What runs in CUDA graphs, or is compiled, has no control flow that reads values.

``torch.compile(fullgraph=True)`` and ``torch.export`` refuse on the CPU what a capture
refuses on a GPU: branches on values of tensors, and copies to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fiftyone_regioncap.captioning.dam.language import Cache, Decoder
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.propagation.sam2.model import TrackerModel
from tests.support.cuda import CudaGraph, pretended_cuda
from tests.support.dam import write_checkpoint

ROWS, LENGTH = 3, 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dam")
    write_checkpoint(folder)
    return folder


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


class Step(nn.Module):
    """A decode step as a module, for torch.export."""

    def __init__(self, dam: DAM, graphs: bool = False) -> None:
        super().__init__()
        self.llm = dam.llm
        cache = Cache(dam.config.llm, ROWS, LENGTH, dam.device, dam.dtype)
        self.decoder = Decoder(dam.llm, cache, graphs)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.decoder._step(tokens, positions, LENGTH)


def compiled(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    return torch.compile(module, fullgraph=True, backend="eager")


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    return torch.export.export(module, inputs).module()


def with_inductor(
    module: nn.Module, inputs: tuple[Tensor, ...]
) -> Callable[..., Tensor]:
    return torch.compile(module, fullgraph=True)


WAYS = [
    pytest.param(compiled, id="compile, full graph"),
    pytest.param(exported, id="export"),
    pytest.param(with_inductor, id="inductor", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("way", WAYS)
def test_a_decode_step_reads_no_values(way: Callable, folder: Path) -> None:
    inputs = (torch.tensor([5, 6, 7]), torch.tensor([0, 3, 9]))
    with torch.no_grad():
        expected = Step(DAM.from_pretrained(folder))(*inputs)
        step = Step(DAM.from_pretrained(folder))
        found = way(step, inputs)(*inputs)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_the_image_encoder_reads_no_values(way: Callable, make_model: Callable) -> None:
    tracker = TrackerModel(make_model())
    pixels = torch.randn(1, 3, tracker.image_size, tracker.image_size)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = tracker._encoder

        def forward(self, pixels: Tensor) -> Tensor:
            return self.encoder(pixels, return_dict=True).fpn_hidden_states[-1]

    with torch.no_grad():
        expected = Encoder()(pixels)
        found = way(Encoder(), (pixels,))(pixels)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_buffers_of_captured_steps_never_move(folder: Path) -> None:
    with pretended_cuda():
        step = Step(DAM.from_pretrained(folder, device="cuda"), graphs=True)
        decoder, places, logits = step.decoder, set(), []
        before = CudaGraph.captured
        for position in range(4):
            tokens = torch.tensor([5, 6, 7], device="cuda")
            positions = torch.full((3,), position, device="cuda")
            out = decoder.step(tokens, positions, position)
            logits.append(out.cpu().clone())
            cache = decoder.cache
            places.add((out.data_ptr(), cache.keys.data_ptr(), cache.values.data_ptr()))
        assert CudaGraph.captured == before + 1
    assert len(places) == 1
    plain = Step(DAM.from_pretrained(folder)).decoder
    for position, found in enumerate(logits):
        expected = plain.step(
            torch.tensor([5, 6, 7]), torch.full((3,), position), position
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
