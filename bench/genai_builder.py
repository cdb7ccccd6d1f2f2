"""Call onnxruntime-genai's model builder as its users do."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TIMEOUT_SECONDS = 1200


def build_genai(checkpoint: Path, target: Path, precision: str) -> None:
    """Write model.onnx and genai_config.json; RuntimeError has the builder's output."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch, "made")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu"]
        command += ["-i", str(checkpoint), "-o", str(made), "-c", scratch, "-p", precision]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        made.rename(target)
