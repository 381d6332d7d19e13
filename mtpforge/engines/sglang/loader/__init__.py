"""Runs the installed SGLang's own NextN loader on a draft, on a machine with or without a GPU.

    request.py    what is asked: one record, JSON in
    stand_in.py   a CUDA device without a driver, kernel packages that are not there, process groups without processes
    configs.py    the server's arguments, and the configs of target and draft, as a draft worker makes them
    habits.py     what SGLang does with parameters beside loading them
    check.py      the steps in order: arguments, configs, draft class, load_weights for every rank
    __main__.py   request file in, report file out

What other engines' checks do too lies in `engines/loading`, which runs beside it; of mtpforge nothing else does.
`engines/sglang/installed.py` starts it.

Real: the argument parser and its resolution, ModelConfig of the target and of the draft worker, the choice of loader,
quantization config, class and shared-expert fusion, the choice of files, load_weights with post_load_weights, and
set_embed_and_head. Stood in for: the answers of torch.cuda, packages that only kernels need, process groups, threads
that load. One effect of the target's constructor is replayed: its table of fused matrices. Not done: repacking for
kernels, a forward pass, loading the target's own weights.
Written for and run with SGLang 0.5.23; another version may need changes in stand_in.py.
"""
