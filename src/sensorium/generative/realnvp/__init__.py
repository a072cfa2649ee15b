from sensorium.catalogue import System

SYSTEM = System(
    title="RealNVP: affine coupling layers at several scales",
    paper="Dinh et al., 2016, arXiv:1605.08803",
    short="RealNVP",
    abilities=("Generator", "FromNoise", "Likelihood", "Latent"),
    exports=(),
    parity="its own Jacobian and inverse (tests/generative/test_flows.py)",
)
