"""The numeric cores that formats share: torch in, torch out, no names, no files.

Every function states its dtype and the order of its operations, because results are compared byte by byte with the
formats' own libraries. Weights are float32 [rows, columns]; a band of rows is as good as a whole matrix.
"""
