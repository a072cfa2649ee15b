from sensorium.catalogue import System

SYSTEM = System(
    title="Supervised Contrastive Learning",
    paper="Khosla et al., 2020, arXiv:2004.11362",
    short="SupCon",
    needs="Encoder",
    abilities=("Encoder",),
    parity="its own formula, written plainly (tests/parity/test_supcon.py)",
    labels=True,
)
