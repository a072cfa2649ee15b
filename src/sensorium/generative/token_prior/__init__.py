from sensorium.catalogue import System

SYSTEM = System(
    title="Taming Transformers for High-Resolution Image Synthesis, second stage",
    paper="Esser et al., 2020, arXiv:2012.09841, section 3.2",
    abilities=("Generator", "Completer", "AnySize", "ClassConditional"),
    exports=(),
    parity="its own definition: causality, total probability (tests/generative/test_vqgan.py)",
)
