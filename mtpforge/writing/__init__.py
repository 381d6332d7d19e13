"""The draft on disk: placed before a byte is written, written at known offsets, visible only when it is whole.

preflight refuses what could not be written
layout    where every byte of the weight files lies
claim     the hidden folder beside the destination, and its lock
journal   finished steps, so that the same command resumes
folder    DraftFolder, which puts the others in order
linked    a folder of links to another's files, with small files of its own
"""
