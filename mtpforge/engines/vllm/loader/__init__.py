"""Runs the installed vLLM's own MTP loader on a draft, on a machine with or without a GPU.

    request.py       what is asked: one record, JSON in
    stand_in.py      a CUDA platform without a driver, process groups without processes
    configs.py       fields of the draft's config that the engine reads and does not compare
    habits.py        what vLLM does with parameters beside loading them
    constructing.py  vLLM's configs for one pair, and the target's class
    check.py         the steps in order: configs, target class, draft class, load_weights
    forward.py       on a GPU: processing of the weights for its kernels, and one forward pass
    __main__.py      request file in, report file out

What other engines' checks do too lies in `engines/loading`, which runs beside it; of mtpforge nothing else does.
`engines/vllm/installed.py` starts it.

Real: ModelConfig, SpeculativeConfig, VllmConfig, the quantization config made from the target, the target's class, the
MTP class, its load_weights, the default loader with its file selection and strict check.
Stood in for: the platform, compiled extension modules, the answers of five "is this supported" operators, process
groups, the attention backend; by `forward` nothing is. Not done: loading the target's own weights, attention itself.
Written for and run with vLLM 0.33.0; another version may need changes in stand_in.py.
"""
