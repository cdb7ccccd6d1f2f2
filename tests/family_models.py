"""The torch models of tests/families.py, untrained: small, each with what it is known for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

from tests.families import LAYERS, MELS, SIGNAL, VOCABULARY

HIDDEN = 128
POSITIONS = 128
LABELS = 10


def _config(make: Callable[..., Any], **other: Any) -> Any:
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
    return hf.LlamaForCausalLM(_config(hf.LlamaConfig, num_key_value_heads=4))


def bert() -> nn.Module:
    """A masked language model."""
    return hf.BertForMaskedLM(_config(hf.BertConfig, intermediate_size=512))


def gpt2() -> nn.Module:
    """Packed q|k|v."""
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=8, n_positions=POSITIONS
    )
    return hf.GPT2LMHeadModel(config)


def qwen2(head_size: int = 8) -> nn.Module:
    """14 query heads, 2 kv heads, biased q, k and v."""
    sizes = {"hidden_size": 14 * head_size, "intermediate_size": 304}
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2}
    return hf.Qwen2ForCausalLM(_config(hf.Qwen2Config, **sizes, **heads))


def qwen3() -> nn.Module:
    """Norms of each query and key head; a head size that is not hidden / heads."""
    return hf.Qwen3ForCausalLM(_config(hf.Qwen3Config, num_key_value_heads=4, head_dim=16))


def mixtral() -> nn.Module:
    """Four experts, two of them per token, stacked weights."""
    config = _config(
        hf.MixtralConfig,
        intermediate_size=160,
        num_key_value_heads=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        experts_implementation="batched_mm",
    )
    return hf.MixtralForCausalLM(config)


def gpt_oss() -> nn.Module:
    """Experts with biases and interleaved gate and up, a sink per head."""
    config = _config(
        hf.GptOssConfig,
        intermediate_size=96,
        num_key_value_heads=4,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
    )
    return hf.GptOssForCausalLM(config)


def lfm2_moe() -> nn.Module:
    """A gated causal convolution in one layer, attention in the other, experts in both."""
    config = _config(
        hf.Lfm2MoeConfig,
        moe_intermediate_size=96,
        num_key_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        num_dense_layers=0,
        layer_types=["conv", "full_attention"],
    )
    return hf.Lfm2MoeForCausalLM(config)


def phi3() -> nn.Module:
    """Packed q|k|v and packed gate|up."""
    config = _config(
        hf.Phi3Config,
        num_key_value_heads=4,
        pad_token_id=0,
        original_max_position_embeddings=POSITIONS,
    )
    return hf.Phi3ForCausalLM(config)


def gemma() -> nn.Module:
    """One kv head, scaled embedding tied to the head."""
    config = _config(hf.GemmaConfig, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True)
    return hf.GemmaForCausalLM(config)


def gemma2() -> nn.Module:
    """Soft caps on scores and logits, a sliding window in every other layer."""
    config = _config(
        hf.Gemma2Config,
        num_key_value_heads=4,
        head_dim=16,
        sliding_window=4,
        query_pre_attn_scalar=16,
        tie_word_embeddings=True,
    )
    return hf.Gemma2ForCausalLM(config)


def gpt_neox() -> nn.Module:
    """Query, key and value interleaved per head; attention and MLP in parallel."""
    return hf.GPTNeoXForCausalLM(_config(hf.GPTNeoXConfig, intermediate_size=512))


def bloom() -> nn.Module:
    """Alibi; query, key and value interleaved per head."""
    config = hf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=LAYERS, n_head=8, hidden_dropout=0.0
    )
    return hf.BloomForCausalLM(config)


def falcon() -> nn.Module:
    """Eight query heads and one kv head, packed."""
    config = hf.FalconConfig(
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
    return hf.FalconForCausalLM(config)


def opt() -> nn.Module:
    """Learned positions counted from the mask; biases everywhere."""
    config = _config(hf.OPTConfig, ffn_dim=512, word_embed_proj_dim=HIDDEN)
    return hf.OPTForCausalLM(config)


def gpt_bigcode() -> nn.Module:
    """GPT-2 with one kv head, packed unevenly."""
    config = hf.GPTBigCodeConfig(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=8, n_positions=POSITIONS
    )
    return hf.GPTBigCodeForCausalLM(config)


def codegen() -> nn.Module:
    """Packed in blocks of heads: query, value and key of each block."""
    config = hf.CodeGenConfig(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=8,
        n_positions=POSITIONS,
        rotary_dim=8,
    )
    return hf.CodeGenForCausalLM(config)


def t5() -> nn.Module:
    """Encoder and decoder in one graph, relative positions, gated MLP."""
    config = hf.T5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        d_kv=16,
        d_ff=256,
        num_layers=LAYERS,
        num_heads=8,
        feed_forward_proj="gated-gelu",
    )
    return hf.T5ForConditionalGeneration(config)


def bart() -> nn.Module:
    """Encoder and decoder in one graph, norms after the residual."""
    config = hf.BartConfig(
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
    return hf.BartForConditionalGeneration(config)


def whisper() -> nn.Module:
    """Two convolutions before the encoder; no bias on the key projections."""
    config = hf.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        num_mel_bins=MELS,
        max_source_positions=16,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return hf.WhisperForConditionalGeneration(config)


def distilbert() -> nn.Module:
    """A classifier."""
    config = hf.DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, hidden_dim=512, n_layers=LAYERS, n_heads=8
    )
    return hf.DistilBertForSequenceClassification(config)


def roberta() -> nn.Module:
    """Positions counted from the tokens."""
    return hf.RobertaForMaskedLM(_config(hf.RobertaConfig))


def albert() -> nn.Module:
    """One layer's weights used by all layers; a narrow embedding."""
    return hf.AlbertForMaskedLM(_config(hf.AlbertConfig, embedding_size=64))


def deberta() -> nn.Module:
    """Scores from content and from relative positions."""
    config = _config(
        hf.DebertaV2Config,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        type_vocab_size=0,
    )
    return hf.DebertaV2ForMaskedLM(config)


def deit() -> nn.Module:
    """A vision transformer with a distillation token."""
    config = _config(
        hf.DeiTConfig, intermediate_size=512, image_size=32, patch_size=8, num_labels=LABELS
    )
    return hf.DeiTForImageClassification(config)


def swin() -> nn.Module:
    """Attention in shifted windows, patches merged between the stages."""
    config = hf.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=LABELS,
    )
    return hf.SwinForImageClassification(config)


def segformer() -> nn.Module:
    """Attention over a reduced sequence, depthwise convolutions in the MLP."""
    config = hf.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[32, 64],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[4, 4],
        num_labels=LABELS,
    )
    return hf.SegformerForImageClassification(config)


def resnet() -> nn.Module:
    """Bottleneck blocks, batch norms, pooling, a linear head."""
    config = hf.ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128], depths=[2, 2], num_labels=LABELS
    )
    return hf.ResNetForImageClassification(config)


def convnext() -> nn.Module:
    """Depthwise convolutions of 7 × 7, norms over channels, layer scale."""
    config = hf.ConvNextConfig(
        hidden_sizes=[32, 64], depths=[2, 2], num_stages=2, num_labels=LABELS
    )
    return hf.ConvNextForImageClassification(config)


def mobilenet() -> nn.Module:
    """Inverted residuals with depthwise convolutions and ReLU6."""
    config = hf.MobileNetV2Config(image_size=32, depth_multiplier=0.5, num_labels=LABELS)
    return hf.MobileNetV2ForImageClassification(config)


def mamba() -> nn.Module:
    """A selective state space: causal convolution and a scan over the sequence."""
    config = hf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=LAYERS, state_size=8
    )
    return hf.MambaForCausalLM(config)


def wav2vec2() -> nn.Module:
    """Convolutions over a waveform, a grouped one for positions, then a transformer."""
    config = _config(
        hf.Wav2Vec2Config,
        vocab_size=32,
        intermediate_size=256,
        conv_dim=(32, 32),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
    )
    return hf.Wav2Vec2ForCTC(config)


def clip() -> nn.Module:
    """Text and image towers, and the similarities of their ends."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "max_position_embeddings": POSITIONS,
        "eos_token_id": 2,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 6,
        "image_size": 32,
        "patch_size": 8,
    }
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


class Tagger(nn.Module):
    """Embedding, a recurrent net in both directions, a label per token."""

    def __init__(self, recurrent: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 64)
        self.recurrent = recurrent(64, 48, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(96, 40)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(self.embedding(input_ids))
        return self.head(hidden)


class Conv1d(nn.Module):
    """A temporal net: dilated convolutions, a grouped one, batch norm, pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(SIGNAL[0], 64, 5, padding=2),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(64, 128, 3, dilation=2, padding=2),
            nn.GELU(),
            nn.Conv1d(128, 128, 3, groups=4, padding=1),
            nn.GroupNorm(8, 128),
            nn.SiLU(),
            nn.AvgPool1d(2),
        )
        self.head = nn.Linear(128, LABELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(-1))


class UNet(nn.Module):
    """Down and up again, by transposed convolution and by resizing, with skips that are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 64)
        self.bottom = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(128, 64, 2, stride=2)
        self.merge = nn.Conv2d(128, 64, 3, padding=1)
        self.instance = nn.InstanceNorm2d(64, affine=True)
        self.last = nn.Conv2d(96, 8, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        one = torch.relu(self.first(pixel_values))
        two = nn.functional.silu(self.norm(self.down(one)))
        bottom = torch.relu(self.bottom(two))
        merged = torch.relu(self.instance(self.merge(torch.cat([self.up(bottom), two], 1))))
        wide = nn.functional.interpolate(merged, scale_factor=2.0, mode="nearest")
        return self.last(torch.cat([wide, one], 1))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
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
    "whisper": whisper,
    "distilbert": distilbert,
    "roberta": roberta,
    "albert": albert,
    "deberta": deberta,
    "deit": deit,
    "swin": swin,
    "segformer": segformer,
    "resnet": resnet,
    "convnext": convnext,
    "mobilenet": mobilenet,
    "mamba": mamba,
    "wav2vec2": wav2vec2,
    "clip": clip,
    "lstm-tagger": lambda: Tagger(nn.LSTM),
    "gru-tagger": lambda: Tagger(nn.GRU),
    "conv1d": Conv1d,
    "unet": UNet,
}
