from sensorium.catalogue import System

SYSTEM = System(
    title="Masked Autoencoders Are Scalable Vision Learners; BERT: Pre-training of Deep Bidirectional Transformers",
    paper="He et al., 2021, arXiv:2111.06377; Devlin et al., 2018, arXiv:1810.04805",
    short="MAE of text",
    data="text",
    abilities=("TextEncoder", "MaskedLanguageModel"),
    exports=(),
    parity="transformers EsmModel, ViTMAEForPreTraining (tests/parity/test_mae_text.py)",
)
