from sensorium.catalogue import System

SYSTEM = System(
    title="MADE: Masked Autoencoder for Distribution Estimation",
    paper="Germain et al., 2015, arXiv:1502.03509",
    short="MADE",
    abilities=("Reconstructor", "Generator", "Completer", "Likelihood"),
    exports=(),
    parity="its own definition: Jacobian, total probability (tests/generative/test_made.py)",
)
