from sensorium.catalogue import System

SYSTEM = System(
    title="OadTR: Online Action Detection with Transformers",
    paper="Wang et al., 2021, arXiv:2106.11149",
    short="OadTR",
    data="streams",
    abilities=("OnlineDetector",),
    loads=("authors' .pth",),
    exports=(),
    parity="authors' layout; torch.nn layers",
    labels=True,
)
