"""Ops without a row and without a body of ONNX's own, and why; the one place that says so."""

from __future__ import annotations

_SEQUENCES = "a sequence, map or optional value is no tensor"
_TEXT = "torch has no tensors of strings"
_TREES = "of ai.onnx.ml: trees and classical learners are run by onnxruntime"
_TRAINING = "of ai.onnx.preview.training: optimizers are no part of inference"

REASONS: dict[str, str] = {
    **dict.fromkeys(
        """SequenceConstruct SequenceEmpty SequenceAt SequenceInsert SequenceErase SequenceLength
        SequenceMap ConcatFromSequence SplitToSequence Optional OptionalGetElement
        OptionalHasElement ZipMap""".split(),
        _SEQUENCES,
    ),
    **dict.fromkeys(
        """StringConcat StringNormalizer StringSplit RegexFullMatch LabelEncoder
        CategoryMapper DictVectorizer""".split(),
        _TEXT,
    ),
    **dict.fromkeys("TreeEnsemble ArrayFeatureExtractor Binarizer".split(), _TREES),
    **dict.fromkeys("Adagrad Adam Momentum Gradient".split(), _TRAINING),
    "FlexAttention": "its scores are changed by graphs of the caller's (without such it runs)",
    "ImageDecoder": "reads image files, for which torch alone has no decoder",
    "MelWeightMatrix": "a table that exporters fold; no exported model of ours holds it",
    "Multinomial": "draws, and no two executors draw alike",
    "TfIdfVectorizer": "counts n-grams of text",
}
DEFAULT = "no row has been written for it"
