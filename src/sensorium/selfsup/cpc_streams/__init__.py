from sensorium.catalogue import System

SYSTEM = System(
    title="Representation Learning with Contrastive Predictive Coding",
    paper="van den Oord et al., 2018, arXiv:1807.03748",
    short="CPC of streams",
    data="streams",
    abilities=("StreamEncoder", "FuturePredictor"),
    exports=(),
    parity="its own formula as a loop (tests/parity/test_cpc_streams.py)",
)
