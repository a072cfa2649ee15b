from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import DINOHead
from sensorium.selfsup.dino.method import DINO


def method():
    head = DINOHead(16, 19, hidden=12, bottleneck=8, norm=True)
    return DINO(ResNet((1, 1), 8, stem="small"), head, momentum=0.9, sinkhorn=True)


def batch(images):
    return {"crops": [images(32, size) for size in (8, 8, 5, 5)]}
