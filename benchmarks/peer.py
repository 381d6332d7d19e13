"""llm-compressor's model_free_ptq on the same layer, in an environment of its own: python peer.py SOURCE OUT.

Needs `pip install llmcompressor` (0.14.0.1 was measured). What engines quantize goes to INT4 in groups of 32 with zero
points; prints CPU seconds as JSON.
"""

from __future__ import annotations

import json
import sys
import time

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import model_free_ptq

if __name__ == "__main__":
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=32)
    model_free_ptq(
        model_stub=sys.argv[1],
        save_directory=sys.argv[2],
        scheme=QuantizationScheme(targets=["Linear"], weights=weights),
        ignore=["re:.*eh_proj$", "re:.*mlp.gate$", "re:.*indexer.wk$", "re:.*weights_proj$", "re:.*norm$"],
        max_workers=2,
        device="cpu",
    )
    print(json.dumps({"cpu": time.process_time()}))
