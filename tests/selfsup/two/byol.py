from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.byol.method import BYOL


def method():
    return BYOL(ResNet((1, 1), 8, stem="small"), mlp_head(16, 12, 9), mlp_head(9, 12, 9), momentum=0.9)


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
