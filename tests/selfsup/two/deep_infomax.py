from sensorium.networks.resnet import ResNet
from sensorium.selfsup.deep_infomax.critics import DotLocal
from sensorium.selfsup.deep_infomax.method import DeepInfoMax


def method():
    return DeepInfoMax(ResNet((1, 1), 8, stem="small"), 7, DotLocal(8, 7, 10), level=0, beta=0.5, bound="dv")


def batch(images):
    return {"image": images(12, 8)}
