from sensorium.catalogue import System

SYSTEM = System(
    title="MAF: masked autoregressive flow",
    paper="Papamakarios et al., 2017, arXiv:1705.07057",
    short="MAF",
    abilities=("Generator", "FromNoise", "Likelihood", "Latent"),
    exports=(),
    parity="its own Jacobian and inverse (tests/generative/test_flows.py)",
)
