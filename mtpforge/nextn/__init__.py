"""The nextn layer as a computation: run on calibration inputs, out of transformers' own modules."""
