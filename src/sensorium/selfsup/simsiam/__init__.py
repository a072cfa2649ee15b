from sensorium.catalogue import System

SYSTEM = System(
    title="Exploring Simple Siamese Representation Learning",
    paper="Chen & He, 2020, arXiv:2011.10566",
    short="SimSiam",
    needs="Encoder",
    abilities=("Encoder",),
    loads=("authors' SimSiam",),
    parity="lightly NegativeCosineSimilarity, SimSiamProjectionHead, SimSiamPredictionHead (tests/parity/test_simsiam.py)",
)
