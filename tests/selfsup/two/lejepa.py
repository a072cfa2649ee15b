from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.lejepa.method import LeJEPA


def method():
    return LeJEPA(ResNet((1, 1), 8, stem="small"), mlp_head(16, 12, 7, bias=True), trade_off=0.3, slices=21)


def batch(images):
    return {"crops": [images(12, size) for size in (8, 8, 5, 5)]}
