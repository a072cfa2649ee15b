from sensorium.catalogue import System

SYSTEM = System(
    title="Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    paper="Caron et al., 2020, arXiv:2006.09882",
    short="SwAV",
    needs="Encoder",
    abilities=("Encoder",),
    loads=("authors' SwAV",),
    parity="lightly SwaVLoss, sinkhorn, SwaVPrototypes, SwaVProjectionHead (tests/parity/test_swav.py)",
)
