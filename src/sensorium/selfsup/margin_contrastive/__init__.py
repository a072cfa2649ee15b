from sensorium.catalogue import System

SYSTEM = System(
    title="Dimensionality Reduction by Learning an Invariant Mapping",
    paper="Hadsell, Chopra, LeCun, 2006, CVPR",
    short="Margin contrastive",
    needs="Encoder",
    abilities=("Encoder",),
    parity="its own formula, written plainly (tests/parity/test_margin_contrastive.py)",
)
