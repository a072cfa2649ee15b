from sensorium.base.draw import Draw
from sensorium.networks.mean_vit import MeanViT
from sensorium.selfsup.i_jepa.masks import MultiBlock
from sensorium.selfsup.i_jepa.method import IJEPA
from sensorium.selfsup.i_jepa.predictor import Predictor


def method():
    network = MeanViT(12, 3, 16, 2, 2, positions="sincos")
    return IJEPA(network, Predictor(16, network.grid, 8, 2, 2), momentum=0.9)


def batch(images):
    context, targets = MultiBlock((4, 4))(Draw.seeded(0, 0, 12))
    return {"image": images(12, 12), "context": context, "targets": targets}
