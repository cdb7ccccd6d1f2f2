"""What the benchmark times: models of real sizes with random weights, one shape of work each.

`python -m bench.make_case` writes a case into a folder of its own under `.cache/bench`:

    model.onnx          what onnxruntime and tpcore run
    inputs.npz          its inputs
    prompt.npy          i64[past + tokens], the token ids of a Llama for peers that have no ONNX
    expected.npy        f32[outputs], the logits of the last token, by torch (int4: onnxruntime)
    case.json           this description, for peers in other interpreters
    ../hf               the same weights as transformers, JAX and builders read them
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAKE_TIMEOUT_SECONDS = 1800
SOURCES = """bench/make_case.py bench/llama_weights.py
tests/big_model.py tests/big_weights.py tests/genai_builder.py""".split()
"""What decides how models are made."""
LLAMA, INT4 = "llama", "llama-int4"


@dataclass(frozen=True)
class Case:
    """A model and the work of one run."""

    name: str
    form: str
    """`llama`, `llama-int4`, `gpt2`, `bert` or `vit`: what the weights are."""
    tokens: int
    """That one run computes (patches of an image and its class token count as tokens)."""
    outputs: int
    """Logits per token, or per image."""
    hidden: int
    layers: int
    past: int = 0
    """Tokens in the cache before a run."""
    runs: int = 5
    """Timed in one turn of a peer, after two that are not."""
    plan: str = "megatron"
    """Of ours: for prompts the layout of weights and activations that decode steps have too."""
    by_builder: bool = False
    """Whether model.onnx is by onnxruntime-genai's builder: attention is one op."""

    @property
    def is_decode(self) -> bool:
        """Whether a run is one step of generating, so that its time and not its rate is told."""
        return self.past > 0

    @property
    def is_image(self) -> bool:
        """Whether the input is one image, of which logits exist once and not per token."""
        return self.form == "vit"

    def small(self) -> Case:
        """The same with two layers and few runs, for trying out."""
        return replace(self, layers=2, runs=2)

    def least_collectives(self) -> int:
        """Of Megatron-LM's split: two per layer, one for the embedding, one for the logits."""
        return 2 * self.layers + (0 if self.is_image else 2)

    def least_bytes(self, ranks: int) -> int:
        """That a rank sends in those, with the best algorithms (all-reduce: 2 (n - 1) / n each)."""
        share = (ranks - 1) / ranks
        width = 4 * self.tokens
        reduced = (self.least_collectives() - (0 if self.is_image else 1)) * width * self.hidden
        gathered = 0 if self.is_image else width * self.outputs
        return round(share * (2 * reduced + gathered))


def _llama(
    name: str, tokens: int, past: int = 0, form: str = LLAMA, *, runs: int, by_builder: bool = False
) -> Case:
    plan = "auto" if past else "megatron"
    return Case(name, form, tokens, 16384, 1024, 16, past, runs, plan, by_builder or form == INT4)


CASES = {
    case.name: case
    for case in (
        _llama("llama-decode", 1, 512, runs=20),
        _llama("llama-prefill-512", 512, runs=3),
        _llama("llama-prefill-128", 128, runs=6),
        _llama("llama-fused-prefill-512", 512, runs=3, by_builder=True),
        _llama("int4-decode", 1, 512, INT4, runs=40),
        _llama("int4-prefill-128", 128, form=INT4, runs=6),
        Case("gpt2", "gpt2", 128, 50257, 768, 12),
        Case("bert", "bert", 128, 30522, 768, 12),
        Case("vit", "vit", 197, 1000, 768, 12),
    )
}
"""A Llama of 214 M parameters in fp32 and in 4 bits, GPT-2 124 M, BERT-base, ViT-B/16."""


def folder_of(case: Case) -> Path:
    """The folder of a case, which may not exist yet."""
    root = Path(os.environ.get("TPCORE_BENCH_CACHE") or ROOT / ".cache" / "bench")
    name = f"{case.past}-{case.tokens}" + "-built" * case.by_builder
    return root / _key() / f"{case.form}-{case.layers}" / name


def ready(case: Case) -> Path:
    """The folder of a case, made if it is not there. Raises RuntimeError with the maker's output.

    The maker needs the `dev` extra and is a process of its own: what it imports stays out of here.
    """
    folder = folder_of(case)
    if not folder.exists():
        command = [sys.executable, "-m", "bench.make_case", json.dumps(asdict(case)), str(folder)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=MAKE_TIMEOUT_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"bench.make_case {case.name} failed:\n{done.stdout[-4000:]}")
    (folder / "case.json").write_text(json.dumps(asdict(case)))
    return folder


def _key() -> str:
    """Digest of all that decides what the models are."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update((ROOT / source).read_bytes())
    for package in ("torch", "transformers", "onnxruntime-genai"):
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()[:8]
