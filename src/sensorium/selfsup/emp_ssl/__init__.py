from sensorium.catalogue import System

SYSTEM = System(
    title="EMP-SSL: Towards Self-Supervised Learning in One Training Epoch",
    paper="Tong et al., 2023, arXiv:2304.03977",
    short="EMP-SSL",
    needs="Encoder",
    abilities=("Encoder",),
    parity="lightly tcr_loss, invariance_loss (tests/parity/test_emp_ssl.py)",
)
