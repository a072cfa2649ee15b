from sensorium.catalogue import System

SYSTEM = System(
    title="OadTR: Online Action Detection with Transformers",
    paper="Wang et al., 2021, arXiv:2106.11149",
    short="OadTR",
    data="streams",
    abilities=("OnlineDetector",),
    loads=("authors' OadTR",),
    exports=(),
    parity="torch TransformerEncoderLayer, TransformerDecoderLayer (tests/parity/test_oadtr.py)",
    labels=True,
)
