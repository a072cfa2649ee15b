from sensorium.catalogue import System

SYSTEM = System(
    title="Score matching by SDEs: VE, VP and sub-VP",
    paper="Song et al., 2020, arXiv:2011.13456",
    short="Score SDE",
    abilities=("Generator", "Completer", "ClassConditional", "IterativeGenerator", "FromNoise"),
    exports=(),
    parity="its own densities and equations (tests/generative/test_diffusion_recipes.py)",
)
