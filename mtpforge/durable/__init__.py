"""Every durable write of the package: drafts, recorded inputs, the download cache.

effects    the few functions that change the disk; a crash can only fall between two of these
files      whole files and folders by means of them: held by one process, replaced at once, removed
refusing   what the system says about a path, in the words of whoever writes
"""
