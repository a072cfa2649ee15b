from sensorium.catalogue import System

SYSTEM = System(
    title="VAE: variational autoencoder, with Gaussian or categorical latents",
    paper="Kingma & Welling, 2013, arXiv:1312.6114; Jang et al., 2016, arXiv:1611.01144; with flows Kingma et al., 2016, arXiv:1606.04934",
    short="VAE",
    abilities=("Reconstructor", "Generator", "FromNoise", "Likelihood", "Latent"),
    exports=(),
    parity="its own bound by enumeration and by closed forms (tests/generative/test_vae.py)",
)
