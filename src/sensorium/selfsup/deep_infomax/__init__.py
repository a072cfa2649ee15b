from sensorium.catalogue import System

SYSTEM = System(
    title="Learning Deep Representations by Mutual Information Estimation and Maximization",
    paper="Hjelm et al., 2018, arXiv:1808.06670",
    short="Deep InfoMax",
    needs="MapEncoder",
    abilities=("Encoder",),
    parity="its own formulas of the authors' losses and critics (tests/parity/test_deep_infomax.py)",
)
