from sensorium.catalogue import System

SYSTEM = System(
    title="Momentum Contrast for Unsupervised Visual Representation Learning",
    paper="He et al., 2019, arXiv:1911.05722",
    short="MoCo",
    needs="Encoder",
    abilities=("Encoder",),
    loads=("authors' MoCo v1",),
    parity="lightly NTXentLoss (tests/parity/test_moco_v1.py)",
)
