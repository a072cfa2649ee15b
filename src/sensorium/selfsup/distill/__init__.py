from sensorium.catalogue import System

SYSTEM = System(
    title="SimReg: Regression as a Simple Yet Effective Tool for Self-supervised Knowledge Distillation",
    paper="Navaneet et al., 2022, arXiv:2201.05131",
    short="Distillation",
    needs="Encoder",
    abilities=("Encoder",),
    parity="lightly NegativeCosineSimilarity, torch smooth_l1_loss (tests/parity/test_distill.py)",
    caveat="a distilled network learned from its teacher, which had its own data, labels and budget",
)
