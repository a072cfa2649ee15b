from sensorium.catalogue import System

SYSTEM = System(
    title="High-Resolution Image Synthesis with Latent Diffusion Models",
    paper="Rombach et al., 2021, arXiv:2112.10752",
    short="Latent diffusion",
    data="pairs",
    abilities=("Generator", "TextConditional", "IterativeGenerator", "FromNoise"),
    exports=("hf",),
    parity="diffusers DDPMScheduler, StableDiffusionPipeline (tests/parity/test_latent_diffusion.py)",
)
