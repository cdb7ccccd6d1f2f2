"""The torch models of tests/families.py that see, listen or are no transformers; untrained."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn

from tests.family_models import HIDDEN, POSITIONS, config
from tests.family_table import LAYERS, MELS, SIGNAL, VOCABULARY

LABELS = 10


def whisper() -> nn.Module:
    """Two convolutions before the encoder; no bias on the key projections."""
    settings = hf.WhisperConfig(
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
    return hf.WhisperForConditionalGeneration(settings)


def deit() -> nn.Module:
    """A vision transformer with a distillation token."""
    settings = config(
        hf.DeiTConfig, intermediate_size=512, image_size=32, patch_size=8, num_labels=LABELS
    )
    return hf.DeiTForImageClassification(settings)


def swin() -> nn.Module:
    """Attention in shifted windows, patches merged between the stages."""
    settings = hf.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=LABELS,
    )
    return hf.SwinForImageClassification(settings)


def segformer() -> nn.Module:
    """Attention over a reduced sequence, depthwise convolutions in the MLP."""
    settings = hf.SegformerConfig(
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
    return hf.SegformerForImageClassification(settings)


def resnet() -> nn.Module:
    """Bottleneck blocks, batch norms, pooling, a linear head."""
    settings = hf.ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128], depths=[2, 2], num_labels=LABELS
    )
    return hf.ResNetForImageClassification(settings)


def convnext() -> nn.Module:
    """Depthwise convolutions of 7 × 7, norms over channels, layer scale."""
    settings = hf.ConvNextConfig(
        hidden_sizes=[32, 64], depths=[2, 2], num_stages=2, num_labels=LABELS
    )
    return hf.ConvNextForImageClassification(settings)


def mobilenet() -> nn.Module:
    """Inverted residuals with depthwise convolutions and ReLU6."""
    settings = hf.MobileNetV2Config(image_size=32, depth_multiplier=0.5, num_labels=LABELS)
    return hf.MobileNetV2ForImageClassification(settings)


def mamba() -> nn.Module:
    """A selective state space: causal convolution and a scan over the sequence."""
    settings = hf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=LAYERS, state_size=8
    )
    return hf.MambaForCausalLM(settings)


def wav2vec2() -> nn.Module:
    """Convolutions over a waveform, a grouped one for positions, then a transformer."""
    settings = config(
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
    return hf.Wav2Vec2ForCTC(settings)


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


OTHER_MODELS: dict[str, Callable[[], nn.Module]] = {
    "whisper": whisper,
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
