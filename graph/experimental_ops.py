"""Ops that were never part of the standard but in the files of opsets 1 to 9, as ones that are."""

from __future__ import annotations

from functools import partial

import numpy as np

from graph.old_node import Old, OldForm, renamed

INT64_MAX = np.iinfo(np.int64).max


def _affine(o: Old) -> None:
    scaled = o.emit("Mul", o.operand(0), o.like(o.attribute("alpha", 1.0)))
    o.become("Add", [scaled, o.like(o.attribute("beta", 0.0))])


def _scale(o: Old) -> None:
    o.become("Mul", [o.operand(0), o.like(o.attribute("scale", 1.0))])


def _image_scaler(o: Old) -> None:
    bias = np.reshape(o.attribute("bias"), (-1, 1, 1))
    scaled = o.emit("Mul", o.operand(0), o.like(o.attribute("scale", 1.0)))
    o.become("Add", [scaled, o.like(bias.tolist())])


def _scaled(o: Old, op_type: str) -> None:
    """alpha · op(beta · x)."""
    inner = o.emit(op_type, o.emit("Mul", o.operand(0), o.like(o.attribute("beta", 1.0))))
    o.become("Mul", [inner, o.like(o.attribute("alpha", 1.0))])


def _crop(o: Old) -> None:
    left, top, right, bottom = o.attribute("border")
    size = o.attribute("scale")
    ends = [-bottom or INT64_MAX, -right or INT64_MAX]
    ends = [top + size[0], left + size[1]] if size else ends
    o.become("Slice", [o.operand(0), o.ints(top, left), o.ints(*ends), o.ints(2, 3)])


def _mean_variance_norm(o: Old) -> None:
    axes = [0, 1, 2, 3] if o.attribute("across_channels", 0) else [0, 2, 3]
    if o.attribute("normalize_variance", 1):
        o.become("MeanVarianceNormalization", [o.operand(0)], axes=axes)
        return
    o.become("Sub", [o.operand(0), o.emit("ReduceMean", o.operand(0), axes=axes)])


EXPERIMENTAL_FORMS: dict[str, OldForm] = {
    "Affine": OldForm(10, _affine),
    "Scale": OldForm(10, _scale),
    "ImageScaler": OldForm(10, _image_scaler),
    "ParametricSoftplus": OldForm(10, partial(_scaled, op_type="Softplus")),
    "ScaledTanh": OldForm(10, partial(_scaled, op_type="Tanh")),
    "Crop": OldForm(10, _crop),
    "DynamicSlice": OldForm(10, partial(renamed, name="Slice")),
    "MeanVarianceNormalization": OldForm(9, _mean_variance_norm),
}
