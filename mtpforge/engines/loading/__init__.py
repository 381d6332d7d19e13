"""What the checks by engines' own loaders share: how a draft is read, how loading is watched, what is said of it.

    answering.py  request file in, report file out
    headers.py    safetensors headers of the draft, and tensors of their shapes without values
    files.py      which tensors the draft's files hold
    coverage.py   which blocks of a tensor were touched, and how often
    watch.py      sees every copy into a parameter
    comparing.py  fields of the two configs that the engine reads and does not compare
    refusing.py   what the engine raises is its refusal, in its own words
    verdict.py    from what was seen to errors and notes

This package runs in an engine's environment, beside the engine's own pins, as the `loader` of each engine does: they
import the standard library, numpy, torch and their engine, and of mtpforge only each other, for nothing else is there.
`engines/installed.py` starts them.
"""
