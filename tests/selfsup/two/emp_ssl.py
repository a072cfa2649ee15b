from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.emp_ssl.method import EMPSSL


def method():
    return EMPSSL(ResNet((1, 1), 8, stem="small"), mlp_head(16, 12, 9, bias=True), invariance=2.0)


def batch(images):
    return {"crops": [images(12, 6) for _ in range(3)]}
