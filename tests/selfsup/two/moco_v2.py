from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.moco_v1.method import MoCo


def method():
    # Batches are larger than the queue.
    head = mlp_head(16, 14, 6, norm=False)
    return MoCo(ResNet((1, 1), 8, stem="small"), head, projection=6, queue=10, temperature=0.2, momentum=0.9, groups=2)


def batch(images):
    return {"views": [images(12, 8) for _ in range(2)]}
