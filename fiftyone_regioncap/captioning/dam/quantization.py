"""8-bit and 4-bit quantization of the language model through bitsandbytes."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import LlamaForCausalLM

from fiftyone_regioncap.core.errors import BackendError

Quantization: TypeAlias = Literal["8bit", "4bit"]
"""Precision of quantized weights."""


def quantize(
    llm: LlamaForCausalLM,
    bits: Quantization,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Replaces the linear layers of the decoder and moves the model to its device.

    The embeddings and the head keep their precision: they are small, and errors there
    show most.

    Args:
        llm: Language model on the CPU, with its weights loaded.
        bits: Precision of the weights: ``"8bit"`` or ``"4bit"``.
        device: Target device; quantization happens during the transfer.
        dtype: Numeric type of the computation.

    Raises:
        BackendError: When bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackendError(
            f"{bits} weights need bitsandbytes: pip install bitsandbytes, or load the "
            "model without quantization"
        )
    modules = importlib.import_module("bitsandbytes").nn
    for layer in llm.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(parent, name, _quantized(modules, linear, bits, dtype))
    llm.to(device)


def _quantized(
    modules: Any, linear: nn.Linear, bits: Quantization, dtype: torch.dtype
) -> nn.Module:
    bias = linear.bias is not None
    size = (linear.in_features, linear.out_features)
    if bits == "8bit":
        module = modules.Linear8bitLt(*size, bias=bias, has_fp16_weights=False)
        module.weight = modules.Int8Params(
            linear.weight.data, requires_grad=False, has_fp16_weights=False
        )
    else:
        module = modules.Linear4bit(
            *size, bias=bias, compute_dtype=dtype, quant_type="nf4"
        )
        module.weight = modules.Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4"
        )
    module.bias = linear.bias
    return module
