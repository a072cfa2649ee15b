from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.margin_contrastive.method import MarginContrastive


def method():
    return MarginContrastive(ResNet((1, 1), 8, stem="small"), mlp_head(16, 12, 8), margin=1.5)


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
