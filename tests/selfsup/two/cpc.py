from sensorium.networks.resnet import ResNet
from sensorium.selfsup.cpc.method import CPC


def method():
    return CPC(ResNet((1, 1), 8, stem="small"), 4, 2, skip=1, steps=3, context_width=6, context_depth=2, targets=5)


def batch(images):
    return {"image": images(12, 12)}
