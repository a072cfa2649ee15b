from sensorium.catalogue import System

SYSTEM = System(
    title="Gated PixelCNN: masked convolutions in two stacks, conditional on the class",
    paper="van den Oord et al., 2016, arXiv:1606.05328",
    short="PixelCNN",
    abilities=("Reconstructor", "Generator", "Completer", "ClassConditional", "Likelihood"),
    exports=(),
    parity="its own masks, Jacobian and total probability (tests/generative/test_pixelcnn.py)",
)
