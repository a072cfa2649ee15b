from sensorium.catalogue import System

SYSTEM = System(
    title="SimMIM: a Simple Framework for Masked Image Modeling",
    paper="Xie et al., 2021, arXiv:2111.09886",
    short="SimMIM",
    needs="MaskedEncoder",
    abilities=("Encoder", "Reconstructor"),
    loads=("Hugging Face SimMIM on a ViT", "Hugging Face SimMIM on a Swin", "Hugging Face SimMIM on a Swin V2"),
    parity="transformers ViTForMaskedImageModeling, SwinForMaskedImageModeling, Swinv2ForMaskedImageModeling (tests/parity/test_simmim.py)",
    caveat="kNN and linear probes underrate SimMIM, which is best when fine-tuned, as its paper (Xie et al., 2021) evaluates",
)
