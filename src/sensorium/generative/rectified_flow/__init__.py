from sensorium.catalogue import System

SYSTEM = System(
    title="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
    paper="Liu et al., 2022, arXiv:2209.03003",
    short="Rectified flow",
    abilities=("Generator", "ClassConditional", "IterativeGenerator", "FromNoise"),
    loads=("diffusers UNet2DModel", "diffusers DiTTransformer2DModel"),
    exports=("hf",),
    parity="diffusers FlowMatchEulerDiscreteScheduler, UNet2DModel, DiTTransformer2DModel (tests/parity/test_rectified_flow.py)",
)
