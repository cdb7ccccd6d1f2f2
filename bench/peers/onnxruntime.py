"""onnxruntime with 1 and 2 threads: the unsplit model, inputs and outputs bound once."""

from __future__ import annotations

import sys

import numpy as np

from bench import child
from bench.child import Ready, Work
from bench.peer import Peer

PEERS = [
    Peer(
        name=f"ort-{threads}",
        title=f"onnxruntime, {threads} thread{'s' * (threads > 1)}",
        module="onnxruntime",
        packages=("onnxruntime",),
        forms=("llama", "llama-int4", "gpt2", "bert", "vit"),
        why_not="",
        threads=threads,
    )
    for threads in (1, 2)
]


def load(work: Work) -> Ready:
    """A session with default optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = work.threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        work.folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    held = child.given(work.inputs(), ort.OrtValue.ortvalue_from_numpy)
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, "cpu")

    def logits(_: object) -> np.ndarray:
        array: np.ndarray = binding.get_outputs()[names.index("logits")].numpy()
        return array

    return Ready(lambda: session.run_with_iobinding(binding), logits)


if __name__ == "__main__":
    sys.exit(child.main(load))
