"""The mesh: named axes of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from graph.errors import PlanError


@dataclass(frozen=True)
class Mesh:
    """Ranks arranged along named axes, the last axis varying fastest, as in MPI and torch.

    >>> Mesh.of(tp=4).size
    4
    """

    axes: tuple[tuple[str, int], ...]
    """(name, number of ranks) per axis."""

    def __post_init__(self) -> None:
        for name, size in self.axes:
            if size < 1:
                raise PlanError(
                    f"mesh axis '{name}' has {size} ranks. A mesh axis needs at least 1. "
                    f"Choose --{name} 1 or more."
                )

    @classmethod
    def of(cls, **axes: int) -> Mesh:
        """Build a mesh from keyword arguments, e.g. `Mesh.of(tp=4)`."""
        return cls(tuple(axes.items()))

    @property
    def size(self) -> int:
        """Number of ranks in all (the world size)."""
        size = 1
        for _, ranks in self.axes:
            size *= ranks
        return size

    def axis_size(self, axis: str) -> int:
        """Number of ranks along `axis`. Raises KeyError for an unknown axis."""
        return dict(self.axes)[axis]

    def __str__(self) -> str:
        return "mesh(" + ", ".join(f"{name}={size}" for name, size in self.axes) + ")"
