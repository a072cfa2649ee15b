from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.moco_v1.method import MoCo


def method():
    # A queue that no number of batches fills exactly.
    network = ResNet((1, 1), 8, stem="small")
    return MoCo(network, mlp_head(16, 6), projection=6, queue=31, temperature=0.2, momentum=0.9, groups=2)


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
