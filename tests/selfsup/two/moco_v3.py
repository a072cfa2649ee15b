from sensorium.networks.resnet import ResNet
from sensorium.selfsup.moco_v3.method import MoCoV3
from sensorium.selfsup.moco_v3.recipe import heads


def method():
    return MoCoV3(ResNet((1, 1), 8, stem="small"), *heads(16, 14, 6, vit=False), temperature=1.0, momentum=0.9)


def batch(images):
    return {"views": [images(24, 8) for _ in range(2)]}
