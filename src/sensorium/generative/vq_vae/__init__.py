from sensorium.catalogue import System

SYSTEM = System(
    title="VQ-VAE: vector-quantized variational autoencoder",
    paper="van den Oord et al., 2017, arXiv:1711.00937",
    short="VQ-VAE",
    abilities=("Autoencoder", "Tokenizer"),
    exports=(),
    parity="its own loss and its moving averages as loops (tests/generative/test_vq_vae.py)",
)
