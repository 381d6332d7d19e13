"""Formats compute where their tensors are, by operations that give the same bits on a GPU as on a CPU.

The device here is torch's `meta`: it knows dtypes and shapes and holds no numbers, so nothing can be read from it, and
whatever mixes it with the CPU shows.
"""

from collections import Counter

import pytest
import torch
import whole_weights
from test_vectors import FILES, matrices, specs
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtpforge import formats
from mtpforge.arithmetic import bits, searching
from mtpforge.formats import FORMATS
from mtpforge.methods import METHODS
from mtpforge.tensors import DTYPES, Quantization
from mtpforge.weights.bands import BAND_ELEMENTS

DEVICE = torch.device("meta")
COLUMNS = 256
BLOCKS = ("F32", "BF16")

# Operations whose every number is rounded by itself as IEEE 754 says, or moved, compared, or an integer's: the bits are
# the same wherever they run. Those of sums, means, products of matrices, powers, roots and exponentials are not.
EXACT = {
    "numbers": "add add_ sub sub_ rsub mul mul_ div neg neg_ abs reciprocal maximum minimum clamp clamp_ round round_"
    " nan_to_num nan_to_num_ masked_fill_ where _to_copy",
    "extremes, which depend on no order": "amin amax aminmax",
    "answers": "eq ne lt gt bitwise_and",
    "integers": "bitwise_or bitwise_or_ bitwise_xor __lshift__ __rshift__ mul add arange",
    "moves": "view _unsafe_view t unsqueeze squeeze expand select slice split unbind stack clone copy_ alias detach"
    " constant_pad_nd index_select index permute empty empty_like full full_like lift_fresh",
}
ALLOWED = {name for names in EXACT.values() for name in names.split()}


class Watch(TorchDispatchMode):
    """Notes what runs on the device; refuses what would mix it with the CPU or differ on a GPU."""

    def __init__(self):
        super().__init__()
        self.operations, self.answers, self.peak = Counter(), 0, 0
        self._storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func is torch.ops.aten._local_scalar_dense.default:
            self.answers += given[0].device == DEVICE
            return True if given[0].device == DEVICE else func(*args, **kwargs)
        assert len({tensor.device for tensor in given}) < 2, f"{func} mixes devices"
        made = func(*args, **kwargs)
        self._look(func, args, given, [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)])
        return made

    def _look(self, func, args, given, made):
        if DEVICE not in {tensor.device for tensor in (*given, *made)}:
            return
        name = func.overloadpacket.__name__
        self.operations[name] += 1
        assert all(tensor.device == DEVICE for tensor in made), f"{func} leaves the device"
        if name.startswith("pow"):
            assert args[1] == 2, "powers other than squares have the device's own error"
        else:
            assert name in ALLOWED, f"is {func} the same on every device?"
        if name.startswith("div"):
            assert len(given) == 2, "CUDA divides by a Python number through its reciprocal: scales.over"
        for tensor in (*given, *made):
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {key: held for key, held in self._storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(n_bytes for _, n_bytes in self._storages.values()))


def _quantizations():
    yield from (Quantization("dense", DTYPES[d].bits, d) for d in ("BF16", "F16", "F32"))
    for scale in ("F32", "BF16"):
        for block in ((128, 128), (32, 64)):
            yield Quantization("fp8_block", 8, strategy="block", block=block, scale_dtype=scale)
            yield Quantization("fp8_scaled", 8, strategy="block", block=block, scale_dtype=scale)
        for strategy in ("tensor", "channel"):
            yield Quantization("fp8_scaled", 8, strategy=strategy, scale_dtype=scale)
    yield formats.nvfp4.quantization(static=False)
    yield formats.modelopt_nvfp4.quantization(static=False)
    for symmetric in (True, False):
        yield Quantization("int_quantized", 8, strategy="channel", symmetric=symmetric, scale_dtype="BF16")
        for width in range(2, 9):
            for size in (32, 48, None):
                strategy = "group" if size else "channel"
                yield Quantization("pack_quantized", width, "", strategy, size, symmetric=symmetric, scale_dtype="BF16")

    for size in (32, 48):
        yield Quantization("awq", 4, "", "group", size, symmetric=False, scale_dtype="F16")
    yield Quantization("w4afp8", 4, "", "group", 128, scale_dtype="BF16")
    for name in ("gptq", "gptq_v2"):
        for width in (3, 4, 8):
            yield Quantization(name, width, "", "group", 32, symmetric=width != 3, scale_dtype="F16")


QUARK = (
    Quantization("quark_int4", 4, "", "group", 32, scale_dtype="BF16"),
    Quantization("quark_int4_in_order", 4, "", "group", 32, symmetric=False, scale_dtype="BF16"),
)
QUANTIZATIONS = [*_quantizations(), *QUARK, *whole_weights.MICROSCALED, *whole_weights.OTHER_SHAPES]


def columns(q):
    return 240 if q.group_size == 48 else COLUMNS


def there(shape, q):
    return {s: torch.empty(spec.shape, dtype=dtype(spec), device=DEVICE) for s, spec in layout(shape, q).items()}


def layout(shape, q):
    return FORMATS[q.format].layout(shape, q)


def dtype(spec):
    return getattr(torch, DTYPES[spec.dtype].torch)


@pytest.fixture(autouse=True)
def _no_table_of_the_stand_in():
    """Tables that decoders keep for a device must not outlive it."""
    from mtpforge.arithmetic import float4

    yield
    float4._pair_table.cache_clear()


def test_every_format_that_is_written_is_here():
    assert {q.format for q in QUANTIZATIONS} == {form.name for form in FORMATS.values() if form.encode}


@pytest.mark.parametrize("rows", [128, 300])
@pytest.mark.parametrize("q", QUANTIZATIONS, ids=lambda q: f"{q.format}-{formats.label(q)}-{q.scale_dtype or q.dtype}")
def test_a_band_is_decoded_and_encoded_on_its_device(q, rows):
    form = FORMATS[q.format]
    shape = (rows - rows % formats.whole(q)[0], columns(q))
    with Watch() as watch:
        values = form.decode(there(shape, q), shape, q)
        assert (values.device, values.dtype, tuple(values.shape)) == (DEVICE, torch.float32, shape)
        assert watch.answers == 0
        amax = torch.empty((), device=DEVICE) if form.needs_amax(q) else None
        matrix = form.matrix_parts(shape, q, amax)
        made = matrix | form.encode(torch.empty(shape, device=DEVICE), q, matrix)
    assert {s: (t.dtype, tuple(t.shape)) for s, t in made.items()} == {
        s: (dtype(spec), spec.shape) for s, spec in layout(shape, q).items()
    }
    assert {s for s, t in made.items() if t.device != DEVICE} <= {"weight_shape"}
    assert watch.answers == (1 if q.is_dense else 0), "a number is fetched from the device: the thread waits for it"
    assert sum(watch.operations.values()) > 0


@pytest.mark.parametrize("stem", FILES)
def test_every_stored_vector_is_decoded_on_its_device(stem):
    """Also older packings, orders of groups and odd blocks."""
    for parts, values, block in matrices(stem):
        shape = tuple(values.shape)
        form, q = whole_weights.recognise(specs(parts), shape, block)
        with Watch() as watch:
            made = form.decode({suffix: part.to(DEVICE) for suffix, part in parts.items()}, shape, q)
        assert (made.device, made.dtype, tuple(made.shape)) == (DEVICE, torch.float32, shape)
        assert watch.answers == 0


@pytest.mark.parametrize("width", [3, 4, 5, 7])
def test_words_of_old_files_are_unpacked_on_their_device(width):
    with Watch():
        codes = bits.unpack_legacy(torch.empty(8, 9, dtype=torch.int32, device=DEVICE), width, 30)
    assert (codes.device, codes.dtype, tuple(codes.shape)) == (DEVICE, torch.uint8, (8, 30))


def test_groups_in_another_order_stay_on_their_device():
    q = Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")
    parts = there((128, COLUMNS), q) | {"weight_g_idx": torch.empty(COLUMNS, dtype=torch.int32, device=DEVICE)}
    with Watch():
        assert FORMATS[q.format].decode(parts, (128, COLUMNS), q).device == DEVICE


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["pack_quantized", "int_quantized"])
def test_scales_of_least_squares_are_searched_on_the_device(name, symmetric):
    width = 4 if name == "pack_quantized" else 8
    q = Quantization(name, width, "", "channel", symmetric=symmetric, scale_dtype="BF16")
    with Watch() as watch:
        made = FORMATS[name].search(torch.empty(300, COLUMNS, device=DEVICE), q, {}, METHODS["mse"].finder(None))
    assert {t.device for t in made.values()} == {DEVICE}
    assert watch.answers == 0


class Elsewhere(torch.Tensor):
    """Numbers of the CPU that claim another device, as far as a search asks."""

    device = DEVICE

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_a_search_with_sums_of_its_own_runs_on_the_cpu(monkeypatch):
    weight = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(0))
    expected = searching.hqq(weight, 4, torch.bfloat16, False)
    seen, sent, to = [], [], torch.Tensor.to
    monkeypatch.setattr(searching, "_hqq", lambda *a, real=searching._hqq: seen.append(a[0].device) or real(*a))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda t, *a, **k: sent.append(a) or t if a == (DEVICE,) else to(t, *a, **k)
    )
    found = searching.hqq(weight.as_subclass(Elsewhere), 4, torch.bfloat16, False)
    assert {device.type for device in seen} == {"cpu"}
    assert sent == [(DEVICE,), (DEVICE,)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# A search takes the longest, and the same memory for every width: the usual one, the ends, one that straddles.
HELD = [
    (q, m) for q in QUANTIZATIONS if q.group_size != 48 for m in ("rtn", "mse") if m == "rtn" or q.bits in (2, 3, 8)
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("q", "method"), HELD, ids=lambda of: of if of in METHODS else f"{of.format}-{formats.label(of)}-{of.dtype}"
)
def test_a_band_needs_at_most_128_mib_of_a_device(q, method):
    """docs/performance.md and building/device.py say so."""
    form, shape = FORMATS[q.format], (BAND_ELEMENTS // 4096, 4096)
    search = form.search or (lambda values, q, matrix, _: form.encode(values, q, matrix))
    with Watch() as watch:
        decoded = form.decode(there(shape, q), shape, q)
        del decoded
        held = torch.empty(shape, device=DEVICE)
        matrix = form.matrix_parts(shape, q, torch.empty((), device=DEVICE) if form.needs_amax(q) else None)
        search(held, q, matrix, METHODS[method].finder(None))
    assert BAND_ELEMENTS * 4 <= watch.peak <= 112 << 20  # and at most 16 MiB, which the values were decoded from


def raw(tensor):
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


@pytest.fixture(scope="module")
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("stem", FILES)
def test_a_gpu_decodes_the_stored_vectors_to_the_library_s_values(cuda, stem):
    for parts, values, block in matrices(stem):
        shape = tuple(values.shape)
        form, q = whole_weights.recognise(specs(parts), shape, block)
        made = form.decode({suffix: part.to(cuda) for suffix, part in parts.items()}, shape, q)
        assert torch.equal(raw(made), raw(form.decode(parts, shape, q)))
        assert torch.equal(made.cpu().to(values.dtype), values)


@pytest.mark.gpu
@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if not m.needs_inputs])
@pytest.mark.parametrize("q", QUANTIZATIONS, ids=lambda q: f"{q.format}-{formats.label(q)}-{q.scale_dtype or q.dtype}")
def test_a_gpu_encodes_to_the_same_bytes(cuda, weights, q, method):
    form = FORMATS[q.format]
    if method != "rtn" and form.search is None:
        pytest.skip("nothing to search")
    for name, weight in weights.items():
        if q.dtype == "F16" and name in {"huge", "heavy tails"}:
            continue
        values = weight[:, : weight.shape[1] // (q.group_size or 1) * (q.group_size or 1)].contiguous()
        matrix = form.matrix_parts(tuple(values.shape), q, values.abs().amax() if form.needs_amax(q) else None)
        search = form.search or (lambda values, q, matrix, _: form.encode(values, q, matrix))
        here = search(values, q, matrix, METHODS[method].finder(None))
        there = {suffix: part.to(cuda) for suffix, part in matrix.items()}
        made = search(values.to(cuda), q, there, METHODS[method].finder(None))
        assert {s for s in here if not torch.equal(raw(here[s]), raw(made[s]))} == set(), name
