"""What all tests share."""

from __future__ import annotations

import os

# Before any import of numpy or onnxruntime: tests compare bits, and ranks share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach a model hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
