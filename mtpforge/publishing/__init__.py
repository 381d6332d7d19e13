"""What becomes of a draft: checkpoints that are published. Links where nothing changes, writes where it does.

target_files   what lies in a target's folder, file by file, and its shards without some of their tensors
layers         the layer that goes in: as it is stored, or to be built first
patches        what changes in a JSON file, as data
graft          a graft, decided: what goes in, which files stay, lose tensors or go
grafting       decide(): the graft of a layer, from headers and configs alone
deltas         the same without the target: what a graft adds, and what it may be added to
making         a decided graft or delta on disk, whole or not at all
judging        a graft judged as a stranger would
merging        decide(), make(): modules of several checkpoints under one config
assembling     folders out of other checkpoints' files, whole or not at all
calls          graft(), delta(), merge(): the functions of `import mtpforge`
"""
