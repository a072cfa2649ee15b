from sensorium.catalogue import System

SYSTEM = System(
    title="Llama 2; Mixtral of Experts",
    paper="Touvron et al., 2023, arXiv:2307.09288; Jiang et al., 2024, arXiv:2401.04088",
    short="CausalLM",
    data="text",
    abilities=("LanguageModel",),
    loads=("Hugging Face Llama", "Hugging Face Mixtral"),
    exports=("hf",),
    parity="transformers LlamaForCausalLM, MixtralForCausalLM (tests/parity/test_causal_lm.py)",
)
