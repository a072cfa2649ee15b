from sensorium.catalogue import System

SYSTEM = System(
    title="Long Short-Term Memory; Learning Phrase Representations using RNN Encoder-Decoder; Finding Structure in Time",
    paper="Hochreiter & Schmidhuber, 1997; Cho et al., 2014, arXiv:1406.1078; Elman, 1990",
    short="RecurrentLM",
    data="text",
    abilities=("LanguageModel",),
    exports=(),
    parity="its own equations, token by token (tests/language/test_recurrent.py)",
)
