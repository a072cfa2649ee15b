from sensorium.catalogue import System

SYSTEM = System(
    title="Masked Autoencoders Are Scalable Vision Learners",
    paper="He et al., 2021, arXiv:2111.06377",
    needs="TokenEncoder",
    abilities=("Encoder", "Pictures"),
    loads=("Hugging Face ViTMAE", "authors' .pth"),
    parity="transformers ViTMAEForPreTraining",
)
