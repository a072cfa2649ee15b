import torch

from sensorium.networks.resnet import ResNet
from sensorium.selfsup.supervised.method import Supervised


def method():
    return Supervised(ResNet((1, 1), 8, stem="small", bottleneck=True), 5, label_smoothing=0.1)


def batch(images):
    # The labels fall unevenly on the two halves.
    return {"image": images(12, 8), "label": torch.tensor([0, 1, -1, -1, -1, -1, 2, 3, 4, 0, -1, 1])}
