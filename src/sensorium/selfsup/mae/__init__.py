from sensorium.catalogue import System

SYSTEM = System(
    title="Masked Autoencoders Are Scalable Vision Learners",
    paper="He et al., 2021, arXiv:2111.06377",
    short="MAE",
    needs="TokenEncoder",
    abilities=("Encoder", "Reconstructor"),
    loads=("Hugging Face ViTMAE", "authors' .pth"),
    parity="transformers ViTMAEForPreTraining",
    starter=True,
    caveat="kNN and linear probes underrate MAE, which is best when fine-tuned, as its paper (He et al., 2022) reports",
)
