from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import ProjectionHead
from sensorium.selfsup.simclr_v2.method import Extended, SimCLRv2


def method():
    """The first step fills the memory, whose length the batch does not divide."""
    backbone = Extended(ResNet((1, 1), 8, stem="small"))
    return SimCLRv2(backbone, ProjectionHead(16, 12, 8), temperature=0.2, memory=11, momentum=0.9)


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
