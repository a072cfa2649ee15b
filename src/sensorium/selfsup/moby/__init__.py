from sensorium.catalogue import System

SYSTEM = System(
    title="Self-Supervised Learning with Swin Transformers",
    paper="Xie et al., 2021, arXiv:2105.04553",
    short="MoBY",
    needs="Encoder",
    abilities=("Encoder",),
    loads=("authors' MoBY on a Swin", "authors' MoBY on a ViT"),
    parity="its own loss, heads and queues as in the authors' code (tests/parity/test_moby.py)",
)
