from sensorium.catalogue import System

SYSTEM = System(
    title="FCOS: Fully Convolutional One-Stage Object Detection",
    paper="Tian et al., 2019, arXiv:1904.01355",
    short="FCOS",
    data="boxes",
    needs="MapEncoder",
    abilities=("Detector",),
    loads=("torchvision FCOS",),
    exports=("torchvision", "onnx"),
    parity="torchvision FCOS (tests/parity/test_fcos.py)",
    labels=True,
)
