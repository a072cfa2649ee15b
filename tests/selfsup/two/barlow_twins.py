from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.barlow_twins.method import BarlowTwins


def method():
    return BarlowTwins(ResNet((1, 1), 8, stem="small"), mlp_head(16, 12, 9, last_bias=False), redundancy=0.05)


def batch(images):
    return {"views": [images(24, 8) for _ in range(2)]}
