from sensorium.catalogue import System

SYSTEM = System(
    title="Transformer Quality in Linear Time",
    paper="Hua et al., 2022, arXiv:2202.10447",
    short="FLASH",
    data="text",
    abilities=("LanguageModel",),
    exports=(),
    parity="its own equations, written with loops",
)
