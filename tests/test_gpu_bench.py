"""The benchmark for GPU machines, as far as it goes without one."""

from __future__ import annotations

import pytest

from backends import registry
from bench import gpu
from tests.big_model import LlamaShape


def test_the_llama_has_its_size() -> None:
    rates = {"bytes_per_second": 2.0, "flops_per_second": float("inf")}
    weights = gpu.limit(gpu.LLAMA_8B, rates)
    assert weights == pytest.approx(7.5e9, rel=0.01)  # without the table that is only looked up
    cached = gpu.limit(LlamaShape(**{**vars(gpu.LLAMA_8B), "cache": 1024}), rates)
    assert cached - weights == 32 * 1024 * 2 * 8 * 128


def test_a_prefill_is_bound_by_its_multiplications() -> None:
    rates = {"bytes_per_second": float("inf"), "flops_per_second": 2.0}
    prefill = LlamaShape(**{**vars(gpu.LLAMA_8B), "sequence": 2048})
    flops = gpu.limit(prefill, rates)
    assert flops == pytest.approx(2048 * 7.5e9, rel=0.1)


def test_without_a_device_it_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in registry.available():
        pytest.skip("there is a device")
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 2
    assert capsys.readouterr().err.startswith("error: backend 'cuda' is not available: ")
