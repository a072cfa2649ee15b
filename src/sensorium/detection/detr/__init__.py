from sensorium.catalogue import System

SYSTEM = System(
    title="End-to-End Object Detection with Transformers",
    paper="Carion et al., 2020, arXiv:2005.12872",
    short="DETR",
    data="boxes",
    needs="MapEncoder",
    abilities=("Detector",),
    loads=("Hugging Face DETR", "Hugging Face DETR on timm's ResNet", "authors' DETR"),
    exports=("hf", "onnx"),
    parity="transformers DetrForObjectDetection (tests/parity/test_detr.py)",
    labels=True,
)
