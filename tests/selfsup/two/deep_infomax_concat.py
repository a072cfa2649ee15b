from sensorium.networks.resnet import ResNet
from sensorium.selfsup.deep_infomax.critics import ConcatLocal, DotGlobal
from sensorium.selfsup.deep_infomax.method import DeepInfoMax


def method():
    local, whole = ConcatLocal(16, 7, 10, others=2), DotGlobal(16, (4, 4), 7, 10)
    return DeepInfoMax(ResNet((1, 1), 8, stem="small"), 7, local, whole=whole, alpha=0.1, bound="infonce")


def batch(images):
    return {"image": images(12, 8)}
