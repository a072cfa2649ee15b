from sensorium.catalogue import System

SYSTEM = System(
    title="High-Resolution Image Synthesis with Latent Diffusion Models: the KL autoencoder",
    paper="Rombach et al., 2021, arXiv:2112.10752",
    short="KL autoencoder",
    abilities=("Latent", "Autoencoder", "LatentAutoencoder"),
    loads=("diffusers AutoencoderKL", "authors' AutoencoderKL"),
    exports=("hf",),
    parity="diffusers AutoencoderKL (tests/parity/test_kl_autoencoder.py)",
)
