"""Ops without a sharding rule, and why: they run on every rank, on whole values."""

from __future__ import annotations

MAKES = "it makes its result from sizes and numbers: there is no tensor to split"
RANDOM = "random numbers must be the same on every rank"
DATA_DEPENDENT = "how much it returns depends on the data"
BODY = "its body runs as it is, on whole values"
SEQUENCE = "sequences and optionals are passed on as they are"
TEXT = "strings have no dims that a weight could share"
TRAINING = "a loss is for training"
FLAT = "its indices count the elements of all channels"
CACHE = "its cache is in pages or in a layout of a GPU kernel; exporters for CPU do not write it"
RECURRENT = "every step needs all of the last state"
DECODING = "the whole decoder is a body inside the op"
OWN_LAYOUT = "an execution provider writes it for itself, after the model is split"
SPARSE = "which entries count depends on the data"
FORMAT = "its weights are packed in the format of a GPU kernel"
SUPERSEDED = "RoiAlign took its place"
UNUSUAL = "no exporter or optimizer for CPU writes it"

ONNX = {
    MAKES: """AffineGrid BlackmanWindow ConstantOfShape EyeLike HammingWindow HannWindow
        MelWeightMatrix Range Size""",
    RANDOM: """Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform
        RandomUniformLike""",
    DATA_DEPENDENT: "NonMaxSuppression NonZero Unique",
    BODY: "If Loop Scan SequenceMap",
    SEQUENCE: """ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt
        SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
        SplitToSequence""",
    TEXT: "ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    TRAINING: "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    FLAT: "MaxUnpool",
    SUPERSEDED: "MaxRoiPool",
}
MICROSOFT = {
    CACHE: """DecoderAttention DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention
        PackedAttention PackedMultiHeadAttention PagedAttention SparsePagedAttention""",
    SPARSE: """DynamicSparseAttention LongformerAttention PackedSparseAttentionIndexer
        PackedSparseAttentionIndexerMerge SparseAttention SparseAttentionIndexer
        SparseToDenseMatMul""",
    RECURRENT: "AttnLSTM DynamicQuantizeLSTM",
    DECODING: "BeamSearch GreedySearch Sampling WhisperBeamSearch",
    OWN_LAYOUT: """ConvTransposeWithDynamicPads EPContext MatMulPacked MatMulNBitsMlp
        MatMulNBitsQkv MatMulNBitsQLoRA NhwcConv NhwcFusedConv NhwcMaxPool QOrderedAttention
        QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention QOrderedMatMul
        QuantizeWithOrder DequantizeWithOrder Snpe""",
    FORMAT: """DequantizeBFP GemmFloat8 MatMulBlockQuantizedFp4Weight
        MatMulBlockQuantizedFp8Weight MatMulBnb4 MatMulFpQ4 MoEPacked QuantizeBFP""",
    RANDOM: "BiasDropout BitmaskBiasDropout BitmaskDropout SampleOp",
    DATA_DEPENDENT: "RemovePadding RestorePadding Unique",
    MAKES: "Range RelativePositionBias",
    TEXT: "MurmurHash3 NGramHashMapping NGramRepeatBlock Tokenizer VarlenNGramHashMapping",
    UNUSUAL: """BifurcationDetector BranchwiseRMSNorm CDist ComplexMul ComplexMulConj
        ConvStateReplay CropAndResize DynamicTimeWarping EngramGate ExpandDims FusedMatMulActivation
        GatedDeltaNet GatedDeltaNetStateReplay GatedRelativePositionBias GatherND GatherPacked
        GemmaRotaryEmbedding GridSample HyperConnectionLowRankMix HyperConnectionPostMix
        HyperConnectionPreMix Inverse Irfft IsAllFinite LinearAttentionGate MRotaryEmbedding
        Mamba2Verify MatMulInteger16 MaxpoolWithMask MoEGroupRouter MulInteger Pad
        QEmbedLayerNormalization QLinearConv QLinearReduceMean RMSNormRotary
        ReduceSumInteger Rfft RouterGateUpProj SpeculativePrefixCommit TorchEmbedding UnfoldTensor
        VarlenCausalConvWithState WordConvEmbedding""",
}

WHOLE_OPS: dict[tuple[str, str], str] = {
    (domain, op): reason
    for domain, groups in (("", ONNX), ("com.microsoft", MICROSOFT))
    for reason, ops in groups.items()
    for op in ops.split()
}
"""(domain, op) -> why it has no rule."""

REWRITTEN_OPS: dict[tuple[str, str], str] = {
    ("", "Gemm"): "it becomes MatMul and Add when a model is read",
    ("", "Constant"): "it becomes a weight when a model is read",
    ("com.microsoft", "EmbedLayerNormalization"): "it becomes Gathers and LayerNormalization",
    ("com.microsoft", "FusedConv"): "it becomes Conv and its activation when a model is read",
}
"""(domain, op) -> what a model is read with instead."""
