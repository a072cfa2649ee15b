from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import DINOHead
from sensorium.selfsup.dino.method import DINO


def method():
    return DINO(ResNet((1, 1), 8, stem="small"), DINOHead(16, 19, hidden=12, bottleneck=8, norm=True), momentum=0.9)


def batch(images):
    return {"crops": [images(12, size) for size in (8, 8, 5, 5)]}
