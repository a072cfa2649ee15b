from sensorium.catalogue import System

SYSTEM = System(
    title="LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics",
    paper="Balestriero and LeCun, 2025, arXiv:2511.08544",
    short="LeJEPA",
    needs="Encoder",
    abilities=("Encoder",),
    parity="lightly SIGReg, LeJEPALoss, scipy quad (tests/parity/test_lejepa.py)",
)
