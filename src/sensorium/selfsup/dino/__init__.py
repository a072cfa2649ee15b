from sensorium.catalogue import System

SYSTEM = System(
    title="Emerging Properties in Self-Supervised Vision Transformers",
    paper="Caron et al., 2021, arXiv:2104.14294",
    short="DINO",
    needs="Encoder",
    abilities=("Encoder", "AttentionMaps"),
    loads=("authors' DINO on a ViT", "authors' DINO on a ResNet"),
    parity="lightly DINOLoss, DINOProjectionHead (tests/parity/test_dino.py)",
    starter=True,
    quick=True,
)
