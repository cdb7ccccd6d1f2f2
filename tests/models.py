"""The models that the tests split: made on first use by `tests/export_models.py`, then cached.

    for model_id in MODELS:
        for case in model_cases(model_id):
            run(model_path(model_id), model_inputs(model_id, case))

`python -m tests.models` makes them all, runs each in onnxruntime and prints a table.
The cache is `.cache/models`, or the folder named by TPCORE_TEST_CACHE. A machine without the
exporters takes models made elsewhere from the folder named by TPCORE_TEST_MODELS.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
EXPORT_TIMEOUT_SECONDS = 900

FAMILIES = ("mlp", "gpt2", "bert", "llama", "vit")
VARIANTS = ("opset18", "opset18-dynamic", "opset23")
GENAI = "llama-genai"
TORCH_MODELS: list[str] = [f"{family}-{variant}" for family in FAMILIES for variant in VARIANTS]
TORCH_MODELS.append("llama-opset23-dynamic")  # the one combination that has RotaryEmbedding-23
MODELS: list[str] = [*TORCH_MODELS, GENAI]

VOCABULARY = 512
LAYERS, HEADS, KV_HEADS, HEAD_SIZE = 2, 8, 4, 16

Inputs = dict[str, np.ndarray]


def model_cases(model_id: str) -> list[str]:
    """Names of the input sets of a model, the default one first."""
    if model_id == GENAI:
        return ["prefill", "decode"]
    return ["default", "other"] if model_id.endswith("dynamic") else ["default"]


def model_inputs(model_id: str, case: str | None = None) -> Inputs:
    """Realistic inputs; the same for all variants of a family.

    "default" has the shapes the model was exported with, "other" has other ones (dynamic models).
    """
    family = model_id.split("-")[0]
    case = case or model_cases(model_id)[0]
    random = np.random.default_rng(zlib.crc32(f"{family}/{case}".encode()))
    if case in ("prefill", "decode"):
        return _cached_inputs(random, past=0 if case == "prefill" else 8)
    batch, sequence = (3, 7) if case == "other" else (2, 12)
    if family == "mlp":
        return {"x": random.standard_normal((batch + 1, 64), np.float32)}
    if family == "vit":
        return {"pixel_values": random.standard_normal((batch, 3, 32, 32), np.float32)}
    return _text_inputs(family, random, batch, sequence)


def _text_inputs(family: str, random: np.random.Generator, batch: int, sequence: int) -> Inputs:
    """Token ids, a mask that hides the end of the last row, positions unlike the default."""
    mask = np.ones((batch, sequence), np.int64)
    mask[-1, sequence - 3 :] = 0
    inputs = {
        "input_ids": random.integers(0, VOCABULARY, (batch, sequence)),
        "attention_mask": mask,
    }
    if family != "bert":
        starts = np.arange(batch)[:, None] * 5
        inputs["position_ids"] = np.arange(sequence)[None, :] + starts
    return inputs


def _cached_inputs(random: np.random.Generator, past: int) -> Inputs:
    """Inputs of a model with a KV cache: 8 tokens on an empty cache, or 1 token on `past`."""
    sequence = 1 if past else 8
    inputs: Inputs = {
        "input_ids": random.integers(0, VOCABULARY, (1, sequence)),
        "attention_mask": np.ones((1, past + sequence), np.int64),
    }
    for layer in range(LAYERS):
        for part in ("key", "value"):
            cache = random.standard_normal((1, KV_HEADS, past, HEAD_SIZE), np.float32)
            inputs[f"past_key_values.{layer}.{part}"] = cache
    return inputs


def model_path(model_id: str) -> Path:
    """Path of a model's ONNX file; the first call exports all models (about a minute).

    Raises:
        KeyError: no such model.
        RuntimeError: the export failed; its output is in the message.
    """
    if model_id not in MODELS:
        raise KeyError(f"no test model '{model_id}'; choose one of {', '.join(MODELS)}")
    given = os.environ.get("TPCORE_TEST_MODELS")
    folder = Path(given) if given else cache_dir() / _cache_key()
    if not given and not folder.is_dir():
        _export_all(folder)
    return folder / model_id / "model.onnx"


def cache_dir() -> Path:
    """Folder of the cached models."""
    return Path(os.environ.get("TPCORE_TEST_CACHE") or ROOT / ".cache" / "models")


def _cache_key() -> str:
    """Digest of all that decides what the models are: the sources and the exporters' versions."""
    digest = hashlib.sha256()
    for source in ("models.py", "export_models.py", "genai_builder.py"):
        digest.update((ROOT / "tests" / source).read_bytes())
    for package in ("torch", "transformers", "onnxscript", "onnx", "onnx-ir", "onnxruntime-genai"):
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()[:16]


def _export_all(folder: Path) -> None:
    """Fill `folder`; processes that ask at the same time wait for the first one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "lock"):
        if folder.is_dir():
            return
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
        unfinished.chmod(0o755)
        try:
            _run_exporter(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _run_exporter(folder: Path) -> None:
    """Export in a process of its own: torch takes seconds to import and never unloads."""
    command = [sys.executable, "-m", "tests.export_models", "all", str(folder)]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=_without_mpi(os.environ) | offline,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=EXPORT_TIMEOUT_SECONDS,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}")


def _without_mpi(environment: os._Environ[str]) -> dict[str, str]:
    """The environment without a launcher's variables: the exporter is no rank."""
    ours = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_LOCAL", "HYDI_")
    return {key: value for key, value in environment.items() if not key.startswith(ours)}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run_reference(path: Path, inputs: Inputs) -> dict[str, np.ndarray]:
    """Outputs of the unsplit model in onnxruntime, by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


def _describe(model_id: str, case: str) -> str:
    path = model_path(model_id)
    outputs = run_reference(path, model_inputs(model_id, case))
    first = next(iter(outputs.values()))
    size = sum(file.stat().st_size for file in path.parent.glob("model.onnx*")) / 1e6
    finite = all(np.isfinite(value).all() for value in outputs.values())
    spread = f"mean {first.mean():+.2f} std {first.std():.2f} finite {finite}"
    return f"{model_id:24} {case:8} {size:5.2f} MB  {first.shape!s:14} {spread}"


def main() -> None:
    """Print one line per model and case."""
    print(f"models in {cache_dir()}", flush=True)
    for model_id in MODELS:
        for case in model_cases(model_id):
            print(_describe(model_id, case), flush=True)


if __name__ == "__main__":
    main()
