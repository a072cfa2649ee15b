from sensorium.catalogue import System

SYSTEM = System(
    title="Masked Autoencoders Are Scalable Vision Learners",
    paper="He et al., 2021, arXiv:2111.06377",
    short="MAE of streams",
    data="streams",
    abilities=("StreamEncoder",),
    exports=(),
    parity="transformers ViTMAEForPreTraining (tests/parity/test_mae_streams.py)",
)
