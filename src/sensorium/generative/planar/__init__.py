from sensorium.catalogue import System

SYSTEM = System(
    title="Planar and radial flows",
    paper="Rezende & Mohamed, 2015, arXiv:1505.05770",
    short="Planar",
    abilities=("Generator", "FromNoise", "Likelihood", "Latent"),
    exports=(),
    parity="normflows Planar, Radial (tests/generative/test_flows.py)",
)
