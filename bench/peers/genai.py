"""onnxruntime-genai with 2 threads: the model as its builder writes it, run by its generator.

A run is `append_tokens`, which computes the logits of the tokens it is given; before every run the
generator is put back to where it was.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from bench import child
from bench.child import Ready, Work
from bench.peer import Peer
from tests.genai_builder import build_genai

PEERS = [
    Peer(
        name="genai",
        title="onnxruntime-genai, 2 threads",
        module="genai",
        packages=("onnxruntime-genai",),
        forms=("llama", "llama-int4"),
        why_not="onnxruntime-genai runs decoders of its own builder only",
        threads=2,
        is_prepared=True,
    )
]
_PRECISIONS = {"llama": "fp32", "llama-int4": "int4"}


def prepare(work: Work) -> None:
    """Build the model with the number of threads in its settings, unless it is there."""
    folder = work.shared / f"genai-{_PRECISIONS[work.case.form]}"
    if not folder.exists():
        build_genai(work.checkpoint, folder, _PRECISIONS[work.case.form])


def load(work: Work) -> Ready:
    """A generator that holds the cache's tokens already."""
    import onnxruntime_genai as og

    config = og.Config(str(work.shared / f"genai-{_PRECISIONS[work.case.form]}"))
    options = {"intra_op_num_threads": work.threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    params = og.GeneratorParams(model)
    prompt, past = work.prompt().astype(np.int32), work.case.past
    params.set_search_options(max_length=len(prompt) + 1, do_sample=False)
    generator = og.Generator(model, params)
    if past:
        generator.append_tokens(prompt[None, :past])
    fresh = prompt[None, past:]
    return Ready(
        lambda: generator.append_tokens(fresh),
        lambda _: np.asarray(generator.get_logits()),
        lambda: generator.rewind_to(past),
    )


if __name__ == "__main__":
    sys.exit(child.main(load, prepare))
