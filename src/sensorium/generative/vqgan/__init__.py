from sensorium.catalogue import System

SYSTEM = System(
    title="Taming Transformers for High-Resolution Image Synthesis",
    paper="Esser et al., 2020, arXiv:2012.09841",
    abilities=("Autoencoder", "Tokenizer"),
    loads=("authors' VQGAN", "diffusers VQModel"),
    exports=("hf",),
    parity="diffusers VQModel (tests/parity/test_vqgan.py)",
)
