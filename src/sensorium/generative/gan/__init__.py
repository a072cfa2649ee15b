from sensorium.catalogue import System

SYSTEM = System(
    title="GAN: generative adversarial network",
    paper="Goodfellow et al., 2014, arXiv:1406.2661",
    short="GAN",
    abilities=("Generator", "ClassConditional", "FromNoise"),
    exports=(),
    parity="its own losses and penalties by hand (tests/generative/test_gan.py)",
)
