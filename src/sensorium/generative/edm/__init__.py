from sensorium.catalogue import System

SYSTEM = System(
    title="EDM: the design space of diffusion models",
    paper="Karras et al., 2022, arXiv:2206.00364",
    short="EDM",
    abilities=("Generator", "Completer", "ClassConditional", "IterativeGenerator", "FromNoise"),
    exports=(),
    parity="diffusers EDMEulerScheduler (tests/generative/test_diffusion_recipes.py)",
)
