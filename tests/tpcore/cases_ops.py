"""Rows of `validator_cases` for ops along an axis, lookups, signals and recurrence."""

from __future__ import annotations

import numpy as np

from tests.tpcore.cases_nets import above, const, floats, ints
from tpcore.trial import Array, Case


def some(*shape: int) -> Array:
    """Truth values, the first of which are true and false."""
    found = ints(0, 2, *shape).astype(np.bool_)
    found.reshape(-1)[:2] = True, False
    return found


ALONG = [
    *(Case(op, (floats(4, 5, 6),), attributes) for op in ("ArgMax", "ArgMin")
      for attributes in ({}, {"axis": -1, "keepdims": 0}, {"axis": 1, "select_last_index": 1})),
    Case("TopK", (floats(4, 5, 6), const(3)), {}, outputs=2, constants=(1,)),
    Case("TopK", (floats(6, 5), const(2)), {"axis": 0, "largest": 0}, outputs=2, constants=(1,)),
    Case("CumSum", (floats(4, 5, 6), np.array(1)), {"exclusive": 1}, constants=(1,)),
    Case("CumSum", (floats(5, 6), np.array(-1)), {"reverse": 1}, constants=(1,)),
    Case("CumProd", (floats(4, 5), np.array(0)), constants=(1,), opset=26),
    Case("ReduceLogSum", (above(0.5, 4, 5, 6), const(1)), {"keepdims": 0}, constants=(1,)),
    *(Case("Hardmax", (floats(4, 5, 6),), {"axis": axis}) for axis in (-1, 1)),
    *(Case("LpNormalization", (floats(4, 5, 6),), {"axis": axis, "p": p})
      for axis, p in ((-1, 2), (1, 1))),
    Case("MeanVarianceNormalization", (floats(4, 6, 3, 3),)),
    Case("MeanVarianceNormalization", (floats(4, 6, 5),), {"axes": [1]}),
    Case("OneHot", (ints(0, 5, 4, 6), np.array(5), np.array([0, 1], np.float32)),
         constants=(1, 2)),
    Case("OneHot", (ints(0, 5, 4, 6), np.array(5), np.array([-1, 2], np.float32)), {"axis": 1},
         constants=(1, 2)),
    Case("Compress", (floats(4, 5, 6), some(5)), {"axis": 1}, constants=(1,)),
    Case("Compress", (floats(4, 5), some(20)), constants=(1,)),
    Case("Trilu", (floats(4, 5, 6), np.array(1)), constants=(1,)),
    Case("Trilu", (floats(2, 3, 5, 5),), {"upper": 0}),
    Case("Det", (floats(4, 5, 3, 3),)),
    Case("ReverseSequence", (floats(6, 4, 5), ints(1, 6, 4))),
    Case("ReverseSequence", (floats(4, 6, 5), ints(1, 6, 4)), {"time_axis": 1, "batch_axis": 0}),
    Case("Tile", (floats(4, 5), const(1, 3)), constants=(1,)),
    Case("Tile", (floats(1, 5, 6), const(2, 1, 1)), constants=(1,)),
]  # fmt: skip

LOOKUPS = [
    Case("GatherElements", (floats(6, 5), ints(-6, 6, 4, 5))),
    Case("GatherElements", (floats(4, 5, 6), ints(0, 6, 4, 3, 7)), {"axis": 2}),
    Case("GatherND", (floats(4, 5, 6), ints(0, 4, 7, 1))),
    Case("GatherND", (floats(4, 5, 6), ints(0, 4, 3, 6, 2))),
    Case("GatherND", (floats(4, 5, 6), ints(0, 5, 4, 7, 1)), {"batch_dims": 1}),
    *(Case(op, (floats(6, 5), np.array([[0] * 5, [4] * 5]), floats(2, 5)), {"axis": 0})
      for op in ("ScatterElements",)),
    Case("ScatterElements", (floats(5, 6), ints(0, 6, 4, 3), floats(4, 3)),
         {"axis": 1, "reduction": "add"}),
    Case("Scatter", (floats(6, 5), np.array([[0] * 5, [4] * 5]), floats(2, 5)), opset=10),
    Case("ScatterND", (floats(6, 4, 5), np.array([[1], [4], [0]]), floats(3, 4, 5))),
    Case("ScatterND", (floats(4, 4, 5), np.array([[1, 2], [3, 0]]), floats(2, 5)),
         {"reduction": "mul"}),
    Case("TensorScatter", (floats(4, 6, 8, 3), floats(4, 6, 2, 3), ints(0, 6, 4)),
         constants=(2,)),
    Case("TensorScatter", (floats(4, 8, 6), floats(4, 2, 6)), {"axis": 1}),
]  # fmt: skip

SIGNALS = [
    Case("DFT", (floats(4, 6, 5, 1), None, np.array(1)), constants=(2,)),
    Case("DFT", (floats(4, 6, 5, 2), np.array(8), np.array(2)), {"inverse": 1},
         constants=(1, 2)),
    Case("DFT", (floats(4, 6, 5, 1),)),
    Case("DFT", (floats(4, 6, 1),), {"axis": 1, "onesided": 1}, opset=17),
    Case("STFT", (floats(4, 16, 1), np.array(4), above(0.5, 8), np.array(8)),
         constants=(1, 2, 3)),
    Case("RNN", (floats(5, 4, 3), floats(1, 6, 3), floats(1, 6, 6)), {"hidden_size": 6},
         outputs=2, constants=(1, 2)),
    Case("RNN", (floats(5, 4, 3), floats(1, 6, 3), floats(1, 6, 6), None, None, floats(1, 4, 6)),
         {"hidden_size": 6}, outputs=2, constants=(1, 2)),
    Case("GRU", (floats(5, 4, 3), floats(1, 18, 3), floats(1, 18, 6), floats(1, 36)),
         {"hidden_size": 6}, outputs=2, constants=(1, 2, 3)),
    Case("LSTM", (floats(5, 4, 3), floats(1, 24, 3), floats(1, 24, 6), floats(1, 48)),
         {"hidden_size": 6}, outputs=3, constants=(1, 2, 3)),
    Case("LSTM", (floats(5, 4, 3), floats(1, 24, 3), floats(1, 24, 6), None, None,
                  floats(1, 4, 6), floats(1, 4, 6)),
         {"hidden_size": 6}, outputs=3, constants=(1, 2)),
    Case("RNN", (floats(5, 4, 3), floats(2, 6, 3), floats(2, 6, 6)),
         {"hidden_size": 6, "direction": "bidirectional"}, outputs=2, constants=(1, 2)),
    Case("GRU", (floats(5, 4, 3), floats(2, 18, 3), floats(2, 18, 6), floats(2, 36)),
         {"hidden_size": 6, "direction": "bidirectional",
          "activations": ["Sigmoid", "Tanh"] * 2}, outputs=2, constants=(1, 2, 3)),
    Case("LSTM", (floats(5, 4, 3), floats(2, 24, 3), floats(2, 24, 6), floats(2, 48), None,
                  floats(2, 4, 6), floats(2, 4, 6), floats(2, 18)),
         {"hidden_size": 6, "direction": "bidirectional"}, outputs=3, constants=(1, 2, 3, 7)),
]  # fmt: skip

PLAIN = [
    Case("Dropout", (floats(5, 6),)),
    Case("Dropout", (floats(5, 6), floats()), outputs=2, constants=(1,)),
    Case("Dropout", (floats(5, 6),), {"ratio": 0.5}, opset=11),
    Case("CastLike", (floats(5, 6), ints(0, 9, 2)), constants=(1,)),
    Case("BitCast", (floats(5, 6),), {"to": 6}, opset=26),
    Case("Attention", (floats(1, 2, 5, 3), floats(1, 2, 5, 3), floats(1, 2, 5, 3)),
         {"left_window_size": 1, "right_window_size": 1}, opset=25),
    Case("Mean", (floats(5, 6), floats(6), floats(5, 1))),
    *(Case("Einsum", tuple(floats(*shape) for shape in shapes), {"equation": equation})
      for equation, shapes in (
          ("bij,bjk->bik", ((4, 5, 6), (4, 6, 7))),
          ("bhqd,bhkd->bhqk", ((2, 4, 3, 5), (2, 4, 6, 5))),
          ("ij->j", ((5, 6),)),
          ("i,ij,j", ((5,), (5, 6), (6,))),
          ("bi,bi->b", ((4, 6), (1, 6))),
          ("ij , jk", ((4, 6), (6, 5))),
          ("ii->i", ((6, 6),)),
      )),
]  # fmt: skip

OTHERS: list[Case] = [*ALONG, *LOOKUPS, *SIGNALS, *PLAIN]
