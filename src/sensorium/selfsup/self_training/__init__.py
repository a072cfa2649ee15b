from sensorium.catalogue import System

SYSTEM = System(
    title="Big Self-Supervised Models are Strong Semi-Supervised Learners",
    paper="Chen et al., 2020, arXiv:2006.10029",
    short="Self-training",
    needs="Encoder",
    abilities=("Encoder", "Classifier"),
    exports=("safetensors", "hf", "timm", "torchvision", "onnx"),
    parity="torch cross_entropy (tests/parity/test_self_training.py)",
    labels=True,
    caveat="a self-trained network learned from its teacher, which had its own data, labels and budget",
)
