from sensorium.catalogue import System

SYSTEM = System(
    title="Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
    paper="Zbontar et al., 2021, arXiv:2103.03230",
    short="Barlow Twins",
    needs="Encoder",
    abilities=("Encoder",),
    loads=("authors' Barlow Twins",),
    parity="lightly BarlowTwinsLoss, BarlowTwinsProjectionHead (tests/parity/test_barlow_twins.py)",
)
