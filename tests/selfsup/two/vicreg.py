from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.vicreg.method import VICReg


def method():
    head = mlp_head(16, 12, 20, bias=True, last_bias=False)  # more dimensions than pictures
    return VICReg(ResNet((1, 1), 8, stem="small"), head)


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
