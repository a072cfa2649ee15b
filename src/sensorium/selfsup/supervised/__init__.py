from sensorium.catalogue import System

SYSTEM = System(
    title="Supervised baseline: cross-entropy on every label",
    paper="-",
    short="Supervised",
    needs="Encoder",
    abilities=("Encoder", "Classifier"),
    exports=("safetensors", "hf", "timm", "torchvision", "onnx"),
    parity="torch cross_entropy (tests/selfsup/test_supervised.py)",
    labels=True,
    starter=True,
    quick=True,
)
