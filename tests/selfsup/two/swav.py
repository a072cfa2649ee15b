from torch import nn

from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.swav.method import SwAV


def method():
    """Of three steps the first fills the queues, whose length neither batch nor processes divide."""
    head, prototypes = mlp_head(16, 12, 8, bias=True), nn.Linear(8, 19, bias=False)
    return SwAV(ResNet((1, 1), 8, stem="small"), head, prototypes, queue=11, queue_start=0.0)


def batch(images):
    return {"crops": [images(12, size) for size in (8, 8, 5, 5)]}
