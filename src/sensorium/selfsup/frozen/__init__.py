from sensorium.catalogue import System

SYSTEM = System(
    title="A network as it is: nothing is trained",
    paper="-",
    short="Frozen",
    needs="Encoder",
    abilities=("Encoder",),
    exports=("safetensors", "hf", "timm", "onnx"),
    parity="its own network's features (tests/selfsup/test_frozen.py)",
    caveat="a frozen network was trained elsewhere, on other data and with another budget",
    trains=False,
)
