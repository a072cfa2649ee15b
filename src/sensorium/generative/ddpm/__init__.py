from sensorium.catalogue import System

SYSTEM = System(
    title="DDPM: denoising diffusion probabilistic models, and DDIM",
    paper="Ho et al., 2020, arXiv:2006.11239; Song et al., 2020, arXiv:2010.02502",
    short="DDPM",
    abilities=("Generator", "Completer", "ClassConditional", "IterativeGenerator", "FromNoise"),
    exports=(),
    parity="diffusers DDIMScheduler (tests/generative/test_diffusion_recipes.py)",
)
