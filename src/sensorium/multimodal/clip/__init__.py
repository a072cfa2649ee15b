from sensorium.catalogue import System

SYSTEM = System(
    title="Learning Transferable Visual Models From Natural Language Supervision",
    paper="Radford et al., 2021, arXiv:2103.00020",
    short="CLIP",
    data="pairs",
    abilities=("Encoder", "ImageText"),
    loads=("Hugging Face CLIP", "OpenCLIP", "OpenAI's CLIP"),
    exports=("hf",),
    parity="transformers CLIPModel, open_clip CLIP (tests/parity/test_clip.py)",
)
