"""The torch models of tests/families.py that read text, untrained: small, each with its quirks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf
from torch import nn

from tests.family_table import LAYERS, VOCABULARY, WINDOW

HIDDEN = 128
POSITIONS = 128


def config(make: Callable[..., Any], **other: Any) -> Any:
    """A decoder's configuration in the words that most families share."""
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 352,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "max_position_embeddings": POSITIONS,
    }
    return make(**(common | other))


def llama() -> nn.Module:
    """Grouped-query attention: 8 query heads, 4 kv heads."""
    return hf.LlamaForCausalLM(config(hf.LlamaConfig, num_key_value_heads=4))


def bert() -> nn.Module:
    """A masked language model."""
    return hf.BertForMaskedLM(config(hf.BertConfig, intermediate_size=512))


def gpt2() -> nn.Module:
    """Packed q|k|v."""
    settings = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=8, n_positions=POSITIONS
    )
    return hf.GPT2LMHeadModel(settings)


def qwen2(head_size: int = 8) -> nn.Module:
    """14 query heads, 2 kv heads, biased q, k and v."""
    sizes = {"hidden_size": 14 * head_size, "intermediate_size": 304}
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2}
    return hf.Qwen2ForCausalLM(config(hf.Qwen2Config, **sizes, **heads))


def qwen3() -> nn.Module:
    """Norms of each query and key head; a head size that is not hidden / heads."""
    return hf.Qwen3ForCausalLM(config(hf.Qwen3Config, num_key_value_heads=4, head_dim=16))


def mixtral() -> nn.Module:
    """Four experts, two of them per token, stacked weights."""
    settings = config(
        hf.MixtralConfig,
        intermediate_size=160,
        num_key_value_heads=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        experts_implementation="batched_mm",
    )
    return hf.MixtralForCausalLM(settings)


def gpt_oss() -> nn.Module:
    """Experts with biases and interleaved gate and up, a sink per head."""
    settings = config(
        hf.GptOssConfig,
        intermediate_size=96,
        num_key_value_heads=4,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
    )
    return hf.GptOssForCausalLM(settings)


def lfm2_moe() -> nn.Module:
    """A gated causal convolution in one layer, attention in the other, experts in both."""
    settings = config(
        hf.Lfm2MoeConfig,
        moe_intermediate_size=96,
        num_key_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        num_dense_layers=0,
        layer_types=["conv", "full_attention"],
    )
    return hf.Lfm2MoeForCausalLM(settings)


def phi3() -> nn.Module:
    """Packed q|k|v and packed gate|up."""
    settings = config(
        hf.Phi3Config,
        num_key_value_heads=4,
        pad_token_id=0,
        original_max_position_embeddings=POSITIONS,
    )
    return hf.Phi3ForCausalLM(settings)


def gemma() -> nn.Module:
    """One kv head, scaled embedding tied to the head."""
    settings = config(hf.GemmaConfig, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True)
    return hf.GemmaForCausalLM(settings)


def gemma2() -> nn.Module:
    """Soft caps on scores and logits, a sliding window in every other layer."""
    settings = config(
        hf.Gemma2Config,
        num_key_value_heads=4,
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        tie_word_embeddings=True,
    )
    return hf.Gemma2ForCausalLM(settings)


def gpt_neox() -> nn.Module:
    """Query, key and value interleaved per head; attention and MLP in parallel."""
    return hf.GPTNeoXForCausalLM(config(hf.GPTNeoXConfig, intermediate_size=512))


def bloom() -> nn.Module:
    """Alibi; query, key and value interleaved per head."""
    settings = hf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=LAYERS, n_head=8, hidden_dropout=0.0
    )
    return hf.BloomForCausalLM(settings)


def falcon() -> nn.Module:
    """Eight query heads and one kv head, packed."""
    settings = hf.FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        multi_query=True,
        new_decoder_architecture=False,
        parallel_attn=True,
        alibi=False,
        bias=False,
        max_position_embeddings=POSITIONS,
    )
    return hf.FalconForCausalLM(settings)


def opt() -> nn.Module:
    """Learned positions counted from the mask; biases everywhere."""
    settings = config(hf.OPTConfig, ffn_dim=512, word_embed_proj_dim=HIDDEN)
    return hf.OPTForCausalLM(settings)


def gpt_bigcode() -> nn.Module:
    """GPT-2 with one kv head, packed unevenly."""
    settings = hf.GPTBigCodeConfig(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=8, n_positions=POSITIONS
    )
    return hf.GPTBigCodeForCausalLM(settings)


def codegen() -> nn.Module:
    """Packed in blocks of heads: query, value and key of each block."""
    settings = hf.CodeGenConfig(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=8,
        n_positions=POSITIONS,
        rotary_dim=8,
    )
    return hf.CodeGenForCausalLM(settings)


def t5() -> nn.Module:
    """Encoder and decoder in one graph, relative positions, gated MLP."""
    settings = hf.T5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        d_kv=16,
        d_ff=256,
        num_layers=LAYERS,
        num_heads=8,
        feed_forward_proj="gated-gelu",
    )
    return hf.T5ForConditionalGeneration(settings)


def bart() -> nn.Module:
    """Encoder and decoder in one graph, norms after the residual."""
    settings = hf.BartConfig(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_position_embeddings=POSITIONS,
    )
    return hf.BartForConditionalGeneration(settings)


def distilbert() -> nn.Module:
    """A classifier."""
    settings = hf.DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, hidden_dim=512, n_layers=LAYERS, n_heads=8
    )
    return hf.DistilBertForSequenceClassification(settings)


def roberta() -> nn.Module:
    """Positions counted from the tokens."""
    return hf.RobertaForMaskedLM(config(hf.RobertaConfig))


def albert() -> nn.Module:
    """One layer's weights used by all layers; a narrow embedding."""
    return hf.AlbertForMaskedLM(config(hf.AlbertConfig, embedding_size=64))


def deberta() -> nn.Module:
    """Scores from content and from relative positions."""
    settings = config(
        hf.DebertaV2Config,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        type_vocab_size=0,
    )
    return hf.DebertaV2ForMaskedLM(settings)


TEXT_MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "bert": bert,
    "gpt2": gpt2,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "mixtral": mixtral,
    "gpt-oss": gpt_oss,
    "lfm2-moe": lfm2_moe,
    "phi3": phi3,
    "gemma": gemma,
    "gemma2": gemma2,
    "gpt-neox": gpt_neox,
    "bloom": bloom,
    "falcon": falcon,
    "opt": opt,
    "gpt-bigcode": gpt_bigcode,
    "codegen": codegen,
    "t5": t5,
    "bart": bart,
    "distilbert": distilbert,
    "roberta": roberta,
    "albert": albert,
    "deberta": deberta,
}
