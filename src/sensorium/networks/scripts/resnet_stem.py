"""Hugging Face's ResNet with a stem for small pictures: one 3x3 convolution and no pool, where ResNet has a 7x7 and a pool.

An export writes this file beside its weights, and transformers reads it from there:

    pipeline("image-classification", DIR, trust_remote_code=True)
    AutoModel.from_pretrained(DIR, trust_remote_code=True)
"""

from __future__ import annotations

from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetConvLayer


class ResNetStemConfig(ResNetConfig):
    """``stem_stride``: of the 3x3 convolution."""

    model_type = "resnet_stem"
    stem_stride = 1


class ResNetStemModel(ResNetModel):
    config_class = ResNetStemConfig

    def __init__(self, config: ResNetStemConfig):
        super().__init__(config)
        _change(self, config)


class ResNetStemForImageClassification(ResNetForImageClassification):
    config_class = ResNetStemConfig

    def __init__(self, config: ResNetStemConfig):
        super().__init__(config)
        _change(self.resnet, config)


def _change(network: ResNetModel, config: ResNetStemConfig) -> None:
    network.embedder.embedder = ResNetConvLayer(3, config.embedding_size, kernel_size=3, stride=config.stem_stride)
    network.embedder.add_module("pooler", nn.Identity())
