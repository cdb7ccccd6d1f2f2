"""Which families there are: how each is exported, and what its inputs are."""

from __future__ import annotations

from dataclasses import dataclass, replace

VOCABULARY = 512
LAYERS = 2
MELS, FRAMES = 16, 32
SIGNAL = (4, 64)
WINDOW = 4
"""Length of a sliding window, and of the cache that holds it."""
PAST = 8
"""Length of the cache that a decoding step reads."""
INT4_TOLERANCE = 1e-3
"""The unsplit model rounds its activations too."""
INT8_TOLERANCE = 2e-2
"""An activation that falls on the other side of a rounding border moves by one step of 1/127."""
HALF_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Family:
    """How a family is exported, and what its inputs are."""

    inputs: tuple[str, ...]
    exporter: str = "dynamo"
    """`dynamo`, `torchscript`, or the precision of onnxruntime-genai's builder."""
    dynamic: bool = True
    """Whether batch and sequence are left open."""
    cache: tuple[int, int] = (0, 0)
    """Number and size of the kv heads of a model with a cache."""
    past: int = 0
    """Length of the cache that a prefill starts from: a sliding window must be full."""
    conv_width: int = 0
    """Channels of the convolution whose state layer 0 keeps in place of keys and values."""
    pixels: int = 32
    """Height and width of an image."""
    split_target: bool = True
    """Whether it is a transformer, whose weights should be split but for a tenth."""
    base: str = ""
    """The architecture, where the family's name says more than that."""
    options: str = ""
    """Extra options of onnxruntime-genai's builder."""
    form: str = ""
    """What is done to the exported model: a name in tests/family_forms.py."""
    tolerance: float | None = None
    """Largest difference of a split model, as a share of the output's scale, if not the usual."""

    @property
    def is_genai(self) -> bool:
        """Whether onnxruntime-genai's builder makes it."""
        return self.exporter not in ("dynamo", "torchscript")


TEXT = ("input_ids", "attention_mask")
PLACED = (*TEXT, "position_ids")
SEQ2SEQ = (*TEXT, "decoder_input_ids")
SPEECH = ("input_features", "decoder_input_ids")
IMAGE = ("pixel_values",)


def _net(inputs: tuple[str, ...], exporter: str = "dynamo", pixels: int = 32) -> Family:
    return Family(inputs, exporter, pixels=pixels, split_target=False)


FIRST: dict[str, Family] = {
    "qwen2": Family(PLACED),
    "qwen3": Family(PLACED),
    "mixtral": Family(PLACED),
    "phi3": Family(PLACED),
    "gemma": Family(PLACED),
    "gpt-neox": Family(PLACED),
    "bloom": Family(TEXT),
    "falcon": Family(PLACED),
    "opt": Family(TEXT),
    "t5": Family(SEQ2SEQ, "torchscript"),
    "bart": Family(SEQ2SEQ),
    "whisper": Family(SPEECH),
    "resnet": _net(IMAGE),
    "lstm-tagger": _net(("input_ids",)),
    "distilbert": Family(TEXT),
    "roberta": Family(TEXT),
    "albert": Family(TEXT),
    "gemma2": Family(PLACED),
    "deit": Family(IMAGE),
    "swin": Family(IMAGE, "torchscript"),
    "convnext": _net(IMAGE),
    "mobilenet": _net(IMAGE),
    "gru-tagger": _net(("input_ids",)),
    "conv1d": _net(("x",)),
    "unet": _net(IMAGE),
    "mamba": Family(("input_ids",), dynamic=False, split_target=False),
    "clip": Family(("input_ids", "attention_mask", "pixel_values")),
    "deberta": Family(TEXT),
    "codegen": Family(PLACED),
    "gpt-bigcode": Family(TEXT),
    "wav2vec2": Family(("input_values",)),
    "segformer": Family(IMAGE),
}

STATIC = "qwen2 mixtral phi3 gemma gpt-neox bloom falcon t5 bart whisper".split()
"""Exported once more with fixed shapes: head counts are then literals."""

OTHERS: dict[str, Family] = {
    "bert-fused": Family(TEXT, "torchscript", base="bert", form="fused"),
    "bert-dynamo-fused": Family(TEXT, base="bert", form="fused"),
    "gpt2-fused": Family(PLACED, "torchscript", base="gpt2", form="fused"),
    "vit-fused": Family(IMAGE, "torchscript", base="deit", form="fused"),
    "gpt2-optimized": Family(PLACED, base="gpt2", form="optimized"),
    "whisper-optimized": Family(SPEECH, base="whisper", form="optimized"),
    "resnet-optimized": replace(FIRST["resnet"], base="resnet", form="optimized"),
    "bert-dynamic-int8": Family(TEXT, base="bert", form="dynamic", tolerance=INT8_TOLERANCE),
    "llama-dynamic-int8": Family(PLACED, base="llama", form="dynamic", tolerance=INT8_TOLERANCE),
    "bert-qdq": Family(TEXT, base="bert", form="qdq", tolerance=INT8_TOLERANCE),
    "resnet-qdq": replace(FIRST["resnet"], base="resnet", form="qdq", tolerance=INT8_TOLERANCE),
    "bert-qlinear": Family(TEXT, base="bert", form="qlinear", tolerance=INT8_TOLERANCE),
    "resnet-qlinear": replace(
        FIRST["resnet"], base="resnet", form="qlinear", tolerance=INT8_TOLERANCE
    ),
    "llama-half": Family(PLACED, base="llama", form="half", tolerance=HALF_TOLERANCE),
    "llama-torchscript": Family(PLACED, "torchscript", base="llama"),
    "gpt2-torchscript": Family(PLACED, "torchscript", base="gpt2"),
    "bert-torchscript": Family(TEXT, "torchscript", base="bert"),
}


def _genai(base: str, kv_heads: int, precision: str, options: str = "") -> Family:
    tolerance = None if precision == "fp32" else INT4_TOLERANCE
    return Family(
        TEXT, precision, cache=(kv_heads, 16), base=base, options=options, tolerance=tolerance
    )


GENAI: dict[str, Family] = {
    "llama-genai-fp32": _genai("llama", 4, "fp32"),
    "llama-genai-int4": _genai("llama", 4, "int4"),
    "llama-genai-int4-zp": _genai("llama", 4, "int4", "is_symmetric=false"),
    "llama-genai-int4-b16": _genai("llama", 4, "int4", "block_size=16"),
    "llama-genai-int4-b128": _genai("llama", 4, "int4", "block_size=128"),
    "llama-genai-int4-qdq": _genai("llama", 4, "int4", "use_qdq=true"),
    "llama-genai-int8": _genai("llama", 4, "int8"),
    "qwen2-genai-fp32": _genai("qwen2", 2, "fp32"),
    "qwen2-genai-int4": _genai("qwen2", 2, "int4"),
    "qwen2-genai-int4-zp": _genai("qwen2", 2, "int4", "is_symmetric=false"),
    "qwen3-genai-fp32": _genai("qwen3", 4, "fp32"),
    "qwen3-genai-int4": _genai("qwen3", 4, "int4"),
    "phi3-genai-int4": _genai("phi3", 4, "int4"),
    "gemma-genai-fp32": _genai("gemma", 1, "fp32"),
    "gpt-oss-genai-fp32": replace(_genai("gpt-oss", 4, "fp32"), past=WINDOW),
    "lfm2-moe-genai-fp32": replace(_genai("lfm2-moe", 4, "fp32"), conv_width=128),
    "lfm2-moe-genai-int4": replace(_genai("lfm2-moe", 4, "int4"), conv_width=128),
}

TABLE: dict[str, Family] = {
    **FIRST,
    **{f"{name}-static": replace(FIRST[name], dynamic=False, base=name) for name in STATIC},
    **OTHERS,
    **GENAI,
}
FAMILIES: list[str] = list(TABLE)
