from sensorium.catalogue import System

SYSTEM = System(
    title="Consistency models, distilled from a diffusion",
    paper="Song et al., 2023, arXiv:2303.01469",
    short="Consistency",
    abilities=("Generator", "ClassConditional", "IterativeGenerator", "FromNoise"),
    exports=(),
    parity="diffusers CMStochasticIterativeScheduler (tests/parity/test_consistency.py)",
)
