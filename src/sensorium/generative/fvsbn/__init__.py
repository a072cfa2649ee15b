from sensorium.catalogue import System

SYSTEM = System(
    title="FVSBN: fully visible sigmoid belief network",
    paper="Frey, 1998; Gan, Henao, Carlson & Carin, 2015",
    short="FVSBN",
    abilities=("Reconstructor", "Generator", "Completer", "Likelihood"),
    exports=(),
    parity="sklearn LogisticRegression (tests/generative/test_fvsbn.py)",
)
