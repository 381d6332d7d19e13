"""What a draft is worth, before any server runs.

    fidelity     does it predict what the dense layer predicts; which module costs what
    swapping     one module of the draft in the dense layer at a time
    distances    of two distributions over the vocabulary
    sampling     which rows are run: captured ones, or synthetic ones, marked so
    verdicts     what is clearly broken
    accepting    how many tokens does a target accept, on what it says itself
    acceptance   of a text that a target made, by window
    cost         seconds and memory, told before anything runs

Layers are run by `nextn`; nothing here knows a format, a family or an engine.
"""
