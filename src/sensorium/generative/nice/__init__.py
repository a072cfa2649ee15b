from sensorium.catalogue import System

SYSTEM = System(
    title="NICE: additive coupling layers",
    paper="Dinh et al., 2014, arXiv:1410.8516",
    short="NICE",
    abilities=("Generator", "FromNoise", "Likelihood", "Latent"),
    exports=(),
    parity="its own Jacobian and inverse (tests/generative/test_flows.py)",
)
