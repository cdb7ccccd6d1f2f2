"""Steps of one shape, as captured graphs of a device want them, choose the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import registry
from tests.models import GENAI, model_path
from tests.tpcore.generation import PROMPTS, greedy
from tpcore.decoder import program_names
from tpcore.generate import Wanted, generate
from tpcore.partition import Options
from tpcore.ranks import AllRanks
from tpcore.target import open_target

NEW = 12


class Fixed(AllRanks):
    """Ranks in torch that want steps of one shape, and note the shapes that they get."""

    fixed_shapes = True

    def __init__(self, path: Path, ranks: int) -> None:
        target = open_target(path, Options(ranks))
        super().__init__(target, registry.get("torch"), program_names(target))
        self.shapes: list[dict[str, tuple[int, ...]]] = []

    def run(self, program, inputs):  # type: ignore[no-untyped-def]
        self.shapes.append({name: tuple(tensor.shape) for name, tensor in inputs[0].items()})
        return super().run(program, inputs)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_steps_have_one_shape(prompts: tuple[list[int], ...], ranks: int) -> None:
    path = model_path(GENAI)
    job = Fixed(path, ranks)
    made = generate(job, Wanted(prompts, NEW))
    assert made.tokens == [greedy(path, tuple(prompt), NEW) for prompt in prompts]
    _, *steps = job.shapes
    assert len(steps) == NEW - 1 and all(shapes == steps[0] for shapes in steps)
    longest = max(len(prompt) for prompt in prompts)
    assert steps[0]["attention_mask"] == (len(prompts), longest + NEW - 1)
