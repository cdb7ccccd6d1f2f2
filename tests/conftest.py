"""What all tests share."""

from __future__ import annotations

import os
import signal

# Before any import of numpy or onnxruntime: tests compare bits, and ranks share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach a model hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A job in the background is told to ignore Ctrl-C, and what it starts would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
