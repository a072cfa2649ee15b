from sensorium.catalogue import System

SYSTEM = System(
    title="Emerging Properties in Self-Supervised Vision Transformers",
    paper="Caron et al., 2021, arXiv:2104.14294",
    short="DINO",
    needs="Encoder",
    abilities=("Encoder",),
    loads=("authors' .pth (ViT)",),
    parity="lightly DINOLoss, DINOProjectionHead",
)
