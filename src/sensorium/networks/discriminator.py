"""The patch discriminator of pix2pix: image-to-image translation with conditional adversarial networks (Isola, Zhu, Zhou &
Efros, 2016, arXiv:1611.07004, appendix 6.1.2).

Convolutions of 4 x 4 classify overlapping patches, each by one logit: real (large) or generated (small). No logit
depends on the whole image, so that texture is judged:
    leaky(conv(x)),  then  leaky(norm(conv(x))) of stride 2, channels doubling up to 8 times, the last one of stride 1,  conv
leaky has a slope of 0.2 and norm is BatchNorm. Parameters are named as in the authors' code, of which VQGAN's is a copy.
Shapes: B images, C channels, H x W pixels, h x w patches.
"""

from __future__ import annotations

from torch import Tensor, nn

SLOPE = 0.2
STD = 0.02  # of the initial weights (pix2pix, section 3.3)


class PatchDiscriminator(nn.Module):
    """Images [B, channels, H, W] -> a logit for each patch [B, 1, h, w], h = H // 2^depth - 2.

    width: channels after the first convolution. depth: convolutions of stride 2. A patch is 16, 34, 70 or 142 pixels
    wide at depths 1 to 4. Images must have at least ``smallest`` pixels per side; else ValueError.
    """

    def __init__(self, channels: int = 3, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.channels, self.width, self.depth, self.smallest = channels, width, depth, 3 * 2**depth
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        inputs = width
        for i in range(1, depth + 1):
            outputs = width * min(2**i, 8)
            conv = nn.Conv2d(inputs, outputs, 4, stride=2 if i < depth else 1, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE)]
            inputs = outputs
        self.main = nn.Sequential(*layers, nn.Conv2d(inputs, 1, 4, padding=1))
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=STD)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, mean=1.0, std=STD)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.smallest:
            height, width = x.shape[-2:]
            raise ValueError(
                f"a discriminator of depth {self.depth} needs images of at least {self.smallest} pixels, not {height}x{width}"
            )
        return self.main(x)
