"""airbench's network (Jordan, 2024, arXiv:2404.00498) for transformers, which has none.

An export writes this file beside its weights, and transformers reads it from there:

    pipeline("image-classification", DIR, trust_remote_code=True)
    AutoModel.from_pretrained(DIR, trust_remote_code=True)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutputWithNoAttention


class AirbenchConfig(PretrainedConfig):
    """``widths``: channels of the groups."""

    model_type = "airbench"

    def __init__(self, widths: tuple[int, ...] = (64, 256, 256), **other) -> None:
        self.widths = list(widths)
        super().__init__(**other)


class AirbenchModel(PreTrainedModel):
    """``pooler_output``: the maximum of the last map over its positions, [B, widths[-1]]."""

    config_class = AirbenchConfig
    base_model_prefix = "airbench"
    main_input_name = "pixel_values"

    def __init__(self, config: AirbenchConfig) -> None:
        super().__init__(config)
        self.whiten = Whiten()
        inputs = (24, *config.widths)
        self.groups = nn.ModuleList(Group(a, b) for a, b in zip(inputs, config.widths, strict=False))
        self.post_init()

    def forward(self, pixel_values: Tensor, **other) -> BaseModelOutputWithPoolingAndNoAttention:
        least = 2 ** len(self.groups) + 1
        height, width = pixel_values.shape[-2:]
        x = self.whiten(F.pad(pixel_values, (0, max(0, least - width), 0, max(0, least - height))))
        for group in self.groups:
            x = group(x)
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=x, pooler_output=x.amax((2, 3)))


class AirbenchForImageClassification(PreTrainedModel):
    config_class = AirbenchConfig
    base_model_prefix = "airbench"
    main_input_name = "pixel_values"

    def __init__(self, config: AirbenchConfig) -> None:
        super().__init__(config)
        self.airbench = AirbenchModel(config)
        self.classifier = nn.Linear(config.widths[-1], config.num_labels or 0)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **other
    ) -> ImageClassifierOutputWithNoAttention:
        logits = self.classifier(self.airbench(pixel_values).pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class Whiten(nn.Module):
    """Decorrelated patches and their negatives."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.zeros(12, 3, 2, 2))
        self.norm = nn.BatchNorm2d(12, affine=False)
        self.bias = nn.Parameter(torch.zeros(24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.conv2d(x, self.filters))
        if not self.training:  # what the training pictures did not have, such as color, is left out
            variance: Tensor = self.norm.running_var  # type: ignore[assignment]
            x = x * (variance > 1e-6 * variance.amax(0)).to(x.dtype)[:, None, None]
        return F.gelu(torch.cat([x, -x], dim=1) + self.bias[:, None, None])


class Group(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))
