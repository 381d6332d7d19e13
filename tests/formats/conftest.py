"""The formats' own libraries, imported once a session, and the weights that break codecs."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

VECTORS = Path(__file__).parents[1] / "data" / "vectors"


@pytest.fixture(scope="session")
def sources():
    """source.safetensors in float32: base, cols100, ragged, gate, up."""
    return {name: weight.float() for name, weight in load_file(VECTORS / "source.safetensors").items()}


@pytest.fixture(scope="session")
def weights(sources):
    """Weights [out, in] of 128 columns by what is odd about them."""
    g = torch.Generator().manual_seed(1)
    random = torch.randn(144, 128, generator=g)
    zeros, tiny, blocks = random.clone(), random.clone(), random.clone()
    zeros[::3, 32:96] = 0
    tiny[:, 64:] *= 1e-7
    blocks[7, 16:32] *= 1e-30
    return {
        "base": sources["base"],
        "random": random,
        "zero groups": zeros,
        "tiny groups": tiny,
        "one tiny block": blocks,
        "zero": torch.zeros(8, 128),
        "subnormal": random * 1e-41,
        "least": torch.full((3, 128), 1e-45),
        "huge": random * 5e37,
        "one row": random[:1].contiguous(),
        "heavy tails": random**7,
        "positive": random.abs() + 1,
        "negative": -random.abs() - 1,
        "ties": (torch.arange(16 * 128).reshape(16, 128) % 97 - 48) / 16,
    }


@pytest.fixture(scope="session")
def compressed_tensors():
    """encode(weight, format, global_scale=None, **QuantizationArgs) -> what the library writes; decode(parts, ...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    def codec(name, arguments):
        args = QuantizationArgs(**arguments)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        return BaseCompressor.get_value_from_registry(name), scheme, args

    def encode(weight, name, *, global_scale=None, **arguments):
        compressor, scheme, args = codec(name, arguments)
        low, high = extent(weight, args)
        scale, zero_point = calculate_qparams(low, high, args, global_scale=global_scale)
        state = {"weight": weight.clone(), "weight_scale": scale, "weight_zero_point": zero_point}
        if global_scale is not None:
            state["weight_global_scale"] = global_scale
        return compressor.compress(state, scheme)

    def decode(parts, name, **arguments):
        compressor, scheme, _ = codec(name, arguments)
        return compressor.decompress(dict(parts), scheme)["weight"]

    def global_scale(*matrices):
        return generate_gparam(
            torch.stack([m.min() for m in matrices]).min(), torch.stack([m.max() for m in matrices]).max()
        )

    return SimpleNamespace(encode=encode, decode=decode, global_scale=global_scale)


def extent(weight, args):
    """Least and largest number under every scale, shaped as the library wants them."""
    strategy = str(args.strategy)
    if strategy in ("group", "tensor_group"):
        groups = weight.unflatten(-1, (-1, args.group_size))
        return groups.amin(-1), groups.amax(-1)
    if strategy == "channel":
        return weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    if strategy == "tensor":
        return weight.min(), weight.max()
    rows, columns = args.block_structure
    whole = torch.nn.functional.pad(weight, (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows))
    blocks = whole.reshape(whole.shape[0] // rows, rows, whole.shape[1] // columns, columns)
    return blocks.amin((1, 3)), blocks.amax((1, 3))


@pytest.fixture(scope="session")
def modelopt():
    """NVFP4QTensor of nvidia-modelopt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor
    return SimpleNamespace(NVFP4QTensor=NVFP4QTensor, FP8QTensor=FP8QTensor)
