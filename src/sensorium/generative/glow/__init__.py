from sensorium.catalogue import System

SYSTEM = System(
    title="Glow: mixed channels between affine coupling layers",
    paper="Kingma & Dhariwal, 2018, arXiv:1807.03039",
    short="Glow",
    abilities=("Generator", "FromNoise", "Likelihood", "Latent"),
    exports=(),
    parity="normflows GlowBlock (tests/generative/test_flows.py)",
)
