from sensorium.catalogue import System

SYSTEM = System(
    title="Zero-Shot Text-to-Image Generation: text and image tokens in one Transformer",
    paper="Ramesh et al., 2021, arXiv:2102.12092, section 2",
    data="pairs",
    abilities=("Generator", "Completer", "AnySize", "TextConditional"),
    exports=(),
    parity="its own definition: the loss by a plain formula, causality, guidance (tests/generative/test_text_prior.py)",
)
