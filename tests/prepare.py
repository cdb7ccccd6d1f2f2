"""Make what takes long and tests need, on all cores at once: `python -m tests.prepare`.

`make test` calls it. Without it the first test that needs a model exports it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.families import make_families
from tests.models import MODELS, model_path

FAMILIES = """
bert-dynamic-int8 bert-qdq deberta gpt-oss-genai-fp32 gru-tagger lfm2-moe-genai-fp32
lfm2-moe-genai-int4 llama-genai-int4 llama-genai-int4-qdq llama-genai-int4-zp llama-genai-int8
llama-half lstm-tagger qwen2-genai-int4-zp resnet-qdq resnet-qlinear wav2vec2
""".split()
"""Those that tests use; others are made by `make families`."""
PARTS = 2


def main() -> None:
    """Export the models and the families, each part in a process of its own."""
    work: list[Callable[[], object]] = [partial(model_path, next(iter(MODELS)))]
    work += [partial(make_families, FAMILIES[part::PARTS]) for part in range(PARTS)]
    with ThreadPoolExecutor(len(work)) as threads:
        for made in [threads.submit(one) for one in work]:
            made.result()


if __name__ == "__main__":
    main()
