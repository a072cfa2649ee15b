from sensorium.catalogue import System

SYSTEM = System(
    title="Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
    paper="Assran et al., 2023, arXiv:2301.08243",
    short="I-JEPA",
    needs="TokenEncoder",
    abilities=("Encoder",),
    loads=("authors' I-JEPA",),
    parity="transformers IJepaModel, lightly IJEPAPredictorTIMM (tests/parity/test_i_jepa.py)",
)
