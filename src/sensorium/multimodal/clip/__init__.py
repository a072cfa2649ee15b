from sensorium.catalogue import System

SYSTEM = System(
    title="Learning Transferable Visual Models From Natural Language Supervision",
    paper="Radford et al., 2021, arXiv:2103.00020",
    data="pairs",
    abilities=("ImageText",),
    loads=("Hugging Face CLIP", "OpenCLIP", "authors' .pt state dict"),
    exports=("hf",),
    parity="transformers CLIPModel, open_clip",
)
