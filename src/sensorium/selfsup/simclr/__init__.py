from sensorium.catalogue import System

SYSTEM = System(
    title="A Simple Framework for Contrastive Learning of Visual Representations",
    paper="Chen et al., 2020, arXiv:2002.05709",
    short="SimCLR",
    needs="Encoder",
    abilities=("Encoder",),
    parity="lightly NTXentLoss, SimCLRProjectionHead (tests/parity/test_ntxent.py)",
    starter=True,
    quick=True,
)
