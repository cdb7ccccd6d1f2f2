"""The table of all ops tpcore has a sharding rule for. An op that is not here runs replicated."""

from __future__ import annotations

from tpcore.rules.along import ALONG_OPS
from tpcore.rules.attention import ATTENTION_OPS
from tpcore.rules.conv import CONV_OPS
from tpcore.rules.elementwise import ELEMENTWISE_OPS
from tpcore.rules.matmul import MATMUL_OPS
from tpcore.rules.microsoft import MICROSOFT_OPS
from tpcore.rules.moe import MOE_OPS
from tpcore.rules.norm import NORM_OPS
from tpcore.rules.quant import QUANT_OPS
from tpcore.rules.recurrent import RECURRENT_OPS
from tpcore.rules.shape import SHAPE_OPS
from tpcore.rules.spec import OpSpec

OPS: dict[tuple[str, str], OpSpec] = {
    **ELEMENTWISE_OPS,
    **MATMUL_OPS,
    **NORM_OPS,
    **SHAPE_OPS,
    **ATTENTION_OPS,
    **CONV_OPS,
    **ALONG_OPS,
    **RECURRENT_OPS,
    **MICROSOFT_OPS,
    **MOE_OPS,
    **QUANT_OPS,
}
