from sensorium.catalogue import System

SYSTEM = System(
    title="NADE: the neural autoregressive distribution estimator, orderless and deep too",
    paper="Larochelle & Murray, 2011; Uria, Murray & Larochelle, 2014, arXiv:1310.1757",
    short="NADE",
    abilities=("Reconstructor", "Generator", "Completer", "Likelihood"),
    exports=(),
    parity="its own recursion and total probability (tests/generative/test_nade.py)",
)
