from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.simsiam.method import SimSiam


def method():
    projector = mlp_head(16, 12, 12, 9, standardized=True)
    return SimSiam(ResNet((1, 1), 8, stem="small"), projector, mlp_head(9, 5, 9))


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
