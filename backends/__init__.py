"""Run the graphs of ranks; README.md says how."""

import graph  # noqa: F401  says how onnx_ir is imported, so it comes first
