from sensorium.catalogue import System

SYSTEM = System(
    title="Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
    paper="Grill et al., 2020, arXiv:2006.07733",
    short="BYOL",
    needs="Encoder",
    abilities=("Encoder",),
    parity="lightly NegativeCosineSimilarity, BYOLProjectionHead, BYOLPredictionHead (tests/parity/test_byol.py)",
)
