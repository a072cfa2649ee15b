from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import ProjectionHead
from sensorium.selfsup.simclr.method import SimCLR


def method():
    return SimCLR(ResNet((1, 1), 8, stem="small"), ProjectionHead(16, 12, 8), temperature=0.2)


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
