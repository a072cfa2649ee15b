from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import ProjectionHead
from sensorium.selfsup.distill.method import Distill


class Teacher:
    """A network of another width, in the precision of the images."""

    def __init__(self):
        self.network = ResNet((1, 1), 6, stem="small").eval().requires_grad_(False)

    def features_and_map(self, images):
        return self.network.to(images.dtype).features_and_map(images)


def method():
    return Distill(ResNet((1, 1), 8, stem="small"), ProjectionHead(16, 20, 12), Teacher(), 12, spatial=0.5)


def batch(images):
    return {"image": images(12, 8)}
