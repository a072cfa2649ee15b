from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.moby.method import MoBY


def method():
    heads = mlp_head(16, 12, 8, bias=True), mlp_head(8, 12, 8, bias=True)
    return MoBY(ResNet((1, 1), 8, stem="small"), *heads, dim_keys=8, negatives=20, momentum=0.9)


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
