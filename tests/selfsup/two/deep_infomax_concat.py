from sensorium.networks.resnet import ResNet
from sensorium.selfsup.deep_infomax.critics import ConcatLocal
from sensorium.selfsup.deep_infomax.method import DeepInfoMax


def method():
    return DeepInfoMax(ResNet((1, 1), 8, stem="small"), 7, ConcatLocal(16, 7, 10, others=2), bound="infonce")


def batch(images):
    return {"image": images(12, 8)}
