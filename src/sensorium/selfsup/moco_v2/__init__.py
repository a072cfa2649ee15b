from sensorium.catalogue import System

SYSTEM = System(
    title="Improved Baselines with Momentum Contrastive Learning",
    paper="Chen et al., 2020, arXiv:2003.04297",
    short="MoCo v2",
    needs="Encoder",
    abilities=("Encoder",),
    loads=("authors' MoCo v2",),
    parity="lightly NTXentLoss, MoCoProjectionHead (tests/parity/test_moco_v2.py)",
)
