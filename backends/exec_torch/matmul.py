"""Matrix products of floats."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .quant import exact_product
from .row import Rows
from .tensors import FLOATS, Tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product; integers without rounding."""
    return torch.matmul(a, b) if a.dtype in FLOATS else exact_product(a, b).to(a.dtype)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha · op(A) · op(B) + beta · C."""
    left, right = a.T if transA else a, b.T if transB else b
    if a.dtype not in FLOATS:
        made = (alpha * exact_product(left, right)).to(a.dtype)
        return made if c is None else made + (beta * c).to(a.dtype)
    if c is not None:
        return torch.addmm(c, left, right, beta=beta, alpha=alpha)
    made = left @ right
    return made if alpha == 1 else made * alpha


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Gemm, then an activation."""
    made = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return _ACTIVATIONS[activation](made) if activation else made


def gemm_fast_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu, by its tanh approximation, of a matrix product."""
    made = x @ weight
    return torch.nn.functional.gelu(made if bias is None else made + bias, approximate="tanh")


def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Alpha times the matrix product, either operand transposed first."""
    made = _transposed(a, transA, transBatchA) @ _transposed(b, transB, transBatchB)
    return made if alpha == 1 else made * alpha


def _transposed(x: Tensor, last: int, batch: int) -> Tensor:
    if batch:
        x = torch.movedim(x, 0, -2)
    return x.transpose(-1, -2) if last and x.ndim > 1 else x


def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Sum of products, by Einstein's notation."""
    return torch.einsum(equation.replace(" ", ""), *operands)


STANDARD: Rows = {"Det": torch.det, "Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
MICROSOFT: Rows = {
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "GemmFastGelu": gemm_fast_gelu,
    "TransposeMatMul": fused_matmul,
}
