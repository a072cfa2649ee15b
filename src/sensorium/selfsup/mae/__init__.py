from sensorium.catalogue import System

SYSTEM = System(
    title="Masked Autoencoders Are Scalable Vision Learners",
    paper="He et al., 2021, arXiv:2111.06377",
    short="MAE",
    needs="TokenEncoder",
    abilities=("Encoder", "Reconstructor"),
    loads=("Hugging Face ViTMAE", "Hugging Face ViTMAE encoder", "authors' MAE"),
    parity="transformers ViTMAEForPreTraining (tests/parity/test_mae.py)",
    starter=True,
    caveat="kNN and linear probes underrate MAE, which is best when fine-tuned, as its paper (He et al., 2022) reports",
)
