"""Other forms of an exported model, as ONNX Runtime's tools write them.

Each function reads a model and writes a new one beside it:

- `fused`: ORT's transformer optimizer, which writes com.microsoft Attention,
  SkipLayerNormalization, EmbedLayerNormalization, BiasGelu and their like;
- `optimized`: what a session writes at level "extended" (FusedMatMul, QuickGelu, fused Conv);
- `dynamic`: int8 weights, activations quantized while it runs (MatMulInteger);
- `qdq`: int8 weights per channel between QuantizeLinear and DequantizeLinear, calibrated;
- `qlinear`: the same as QLinearMatMul, QLinearConv, QLinearAdd;
- `half`: float16 inside, float32 inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnxruntime import quantization
from onnxruntime.transformers import float16, optimizer

from tests.models import Inputs

Form = Callable[[Path, Path, str, Sequence[Inputs]], None]
"""Source, target, family and the inputs to calibrate with."""

HEADS, HIDDEN = 8, 128


def fused(source: Path, target: Path, family: str, cases: Sequence[Inputs]) -> None:
    """Fuse attention, embeddings and norms."""
    kind = {"gpt2": "gpt2", "vit": "vit", "clip": "clip", "bart": "bart", "t5": "t5"}
    model = optimizer.optimize_model(
        str(source),
        model_type=kind.get(family, "bert"),
        num_heads=HEADS,
        hidden_size=HIDDEN,
        opt_level=0,
    )
    model.save_model_to_file(str(target))


def optimized(source: Path, target: Path, family: str, cases: Sequence[Inputs]) -> None:
    """Let a session write the graph it would run."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def dynamic(source: Path, target: Path, family: str, cases: Sequence[Inputs]) -> None:
    """Quantize the weights of matrix products per channel."""
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantization.quantize_dynamic(source, target, per_channel=True, extra_options=options)


class _Calibration(quantization.CalibrationDataReader):
    def __init__(self, cases: Sequence[Inputs]) -> None:
        self.cases: Iterator[Inputs] = iter(cases)

    def get_next(self) -> Inputs | None:
        return next(self.cases, None)


def qdq(source: Path, target: Path, family: str, cases: Sequence[Inputs]) -> None:
    """Quantize weights per channel and activations per tensor."""
    _quantize(source, target, cases, quantization.QuantFormat.QDQ)


def qlinear(source: Path, target: Path, family: str, cases: Sequence[Inputs]) -> None:
    """The same with one op for each product."""
    _quantize(source, target, cases, quantization.QuantFormat.QOperator)


def _quantize(source: Path, target: Path, cases: Sequence[Inputs], style: Any) -> None:
    quantization.quantize_static(
        source,
        target,
        _Calibration(cases[:1]),
        quant_format=style,
        per_channel=True,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def half(source: Path, target: Path, family: str, cases: Sequence[Inputs]) -> None:
    """Convert to float16."""
    model = float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(model, target)


FORMS: dict[str, tuple[Form, float]] = {
    "fused": (fused, 1e-3),
    "optimized": (optimized, 1e-4),
    "dynamic": (dynamic, 0.5),
    "qdq": (qdq, 0.5),
    "qlinear": (qlinear, 0.5),
    "half": (half, 2e-2),
}
"""By name: the form, and the largest difference from torch allowed, as a share of the scale."""
