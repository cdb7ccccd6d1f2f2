"""Runs segments with torch, on any device it has. The one package that imports it to compute.

`table.py` is the list of ops, one row each; `lower.py` makes a torch.fx.GraphModule of a segment.
"""

from .executor import TorchExecutor, missing_ops

__all__ = ["TorchExecutor", "missing_ops"]
