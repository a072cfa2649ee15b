from sensorium.catalogue import System

SYSTEM = System(
    title="An Empirical Study of Training Self-Supervised Vision Transformers",
    paper="Chen et al., 2021, arXiv:2104.02057",
    short="MoCo v3",
    needs="Encoder",
    abilities=("Encoder", "AttentionMaps"),
    loads=("authors' MoCo v3 on a ResNet", "authors' MoCo v3 on a ViT"),
    parity="lightly MoCoProjectionHead (tests/parity/test_moco_v3.py)",
)
