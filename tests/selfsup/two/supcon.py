import torch

from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.supcon.method import SupCon


def method():
    return SupCon(ResNet((1, 1), 8, stem="small"), mlp_head(16, 12, 8, norm=False), temperature=0.2)


def batch(images):
    # Classes on both halves, on one, of one image, and images without a label.
    labels = torch.tensor([0, 1, -1, -1, 3, 0, 2, 2, 0, 1, -1, 2])
    return {"views": [images(12, 8) for _ in range(2)], "label": labels}
