from sensorium.networks.resnet import ResNet
from sensorium.selfsup.deep_infomax.critics import DotGlobal, DotLocal
from sensorium.selfsup.deep_infomax.method import DeepInfoMax


def method():
    local, whole = DotLocal(8, 7, 4), DotGlobal(8, (8, 8), 7, 4)
    return DeepInfoMax(ResNet((1, 1), 8, stem="small"), 7, local, whole=whole, level=0, alpha=0.5, beta=0.5, bound="dv")


def batch(images):
    return {"image": images(12, 8)}
