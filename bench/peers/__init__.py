"""The competitors: each file has `PEERS`, what to show of it, and runs as a program of its own.

A file imports its library only inside the functions that the program calls, so that this list can
be read where the library is not installed.
"""

from __future__ import annotations

from importlib import import_module

from bench.peer import Peer

OURS = "tpcore"
MODULES = (
    "ours",
    "onnxruntime",
    "transformers",
    "dtensor",
    "genai",
    "jax",
    "llama_cpp",
    "deepspeed",
)


def all_peers() -> dict[str, Peer]:
    """By name, ours first."""
    modules = (import_module(f"bench.peers.{name}") for name in MODULES)
    return {peer.name: peer for module in modules for peer in module.PEERS}
