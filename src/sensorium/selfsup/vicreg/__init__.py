from sensorium.catalogue import System

SYSTEM = System(
    title="VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
    paper="Bardes et al., 2022, arXiv:2105.04906",
    short="VICReg",
    needs="Encoder",
    abilities=("Encoder",),
    loads=("authors' VICReg",),
    parity="lightly VICRegLoss, VICRegProjectionHead (tests/parity/test_vicreg.py)",
)
