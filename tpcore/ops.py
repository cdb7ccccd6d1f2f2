"""The table of all ops tpcore has a sharding rule for. An op that is not here runs replicated."""

from __future__ import annotations

from tpcore.rules.attention import ATTENTION_OPS
from tpcore.rules.elementwise import ELEMENTWISE_OPS
from tpcore.rules.matmul import MATMUL_OPS
from tpcore.rules.norm import NORM_OPS
from tpcore.rules.shape import SHAPE_OPS
from tpcore.rules.spec import OpSpec

OPS: dict[tuple[str, str], OpSpec] = {
    **ELEMENTWISE_OPS,
    **MATMUL_OPS,
    **NORM_OPS,
    **SHAPE_OPS,
    **ATTENTION_OPS,
}
