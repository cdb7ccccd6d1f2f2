"""What commands print for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def print_json(contents: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(contents, indent=2, allow_nan=False))
