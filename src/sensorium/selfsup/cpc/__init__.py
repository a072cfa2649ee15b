from sensorium.catalogue import System

SYSTEM = System(
    title="Representation Learning with Contrastive Predictive Coding",
    paper="van den Oord et al., 2018, arXiv:1807.03748; Henaff et al., 2019, arXiv:1905.09272",
    short="CPC",
    needs="Encoder",
    abilities=("Encoder",),
    parity="its own formula as a loop (tests/parity/test_cpc.py)",
)
