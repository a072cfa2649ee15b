from sensorium.catalogue import System

SYSTEM = System(
    title="Big Self-Supervised Models are Strong Semi-Supervised Learners",
    paper="Chen et al., 2020, arXiv:2006.10029",
    short="SimCLR v2",
    needs="Encoder",
    abilities=("Encoder",),
    parity="lightly NTXentLoss, SimCLRProjectionHead (tests/parity/test_simclr_v2.py)",
)
