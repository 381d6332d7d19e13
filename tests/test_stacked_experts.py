"""Sources whose experts are stored as one tensor for all of them: the same draft as from experts stored one by one."""

from __future__ import annotations

import json
import math

import pytest
import torch
import whole_weights
from drafts import failed
from safetensors.torch import load_file, save_file
from slow_twins import layouts, packers

from mtpforge import formats as stored_as
from mtpforge import stacks as stacked_experts
from mtpforge.building import build
from mtpforge.checking.parts import Part
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.folder import Folder
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import plan
from mtpforge.sourcing import stored_layer
from mtpforge.stacks import unstacked
from mtpforge.tensors import Quantization, Spec, TensorRef
from mtpforge.verifying import verify
from mtpforge.weights import Reader

P = "model.layers.3."
E = f"{P}mlp.experts."
N = 16
INT4 = Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")
INT4_BLOCK = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32}}},
}
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32")
TENSOR = Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32")
NVFP4 = Quantization("modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3")
MXFP4 = Quantization("mxfp4", 4, strategy="group", group_size=32, scale_dtype="U8")


def ours(quantization):
    """gate and up under one matrix-wide scale, as engines want them; each with its parts."""
    return lambda weights: [whole_weights.encode(weights, quantization)[i] for i in range(len(weights))]


def awq(weights):
    return [packers.awq(weight, 64)[0] for weight in weights]


def above(parts, axis):
    """Parts of gate and up as one: rows above each other along an axis; what is no matrix is of both."""
    return {
        suffix: torch.cat([p[suffix] for p in parts], axis) if first.dim() > 1 else first
        for suffix, first in parts[0].items()
    }


def taking_turns(parts, _axis):
    return {suffix: torch.stack([p[suffix] for p in parts], 1).flatten(0, 1) for suffix in parts[0]}


def stacked(parts):
    return {suffix: torch.stack([p[suffix] for p in parts]) for suffix in parts[0]}


def plain(name, parts):
    """transformers: no `.weight`, the scale's name grown out of the weight's."""
    return {f"{name}{suffix.removeprefix('weight')}": part for suffix, part in parts.items()}


def dotted(name, parts):
    """compressed-tensors 0.20.0 states the shape [E, out, in] of a stack."""
    whole = parts | ({"weight_shape": torch.tensor([N, *parts["weight_shape"][0]])} if "weight_shape" in parts else {})
    return {f"{name}.{suffix}": part for suffix, part in whole.items()}


def grown(name, parts):
    """ModelOpt: `gate_up_proj`, `gate_up_proj_weight_scale`."""
    return {name if suffix == "weight" else f"{name}_{suffix}": part for suffix, part in parts.items()}


def openai(name, parts):
    codes, scales = parts["weight_packed"], parts["weight_scale"]
    return {f"{name}_blocks": codes.unflatten(-1, (-1, 16)), f"{name}_scales": scales}


# name -> how weights become parts, what gate and up become, the axis of rows, how parts are named, the config's block
STACKS = {
    "BF16 of transformers": (lambda ws: [{"weight": w.bfloat16()} for w in ws], above, 0, plain, {}),
    "FP8 in blocks": (ours(FP8), above, 0, plain, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "FP8 per tensor": (ours(TENSOR), above, 0, grown, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "NVFP4 of ModelOpt": (ours(NVFP4), above, 0, grown, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "INT4 of compressed-tensors": (ours(INT4), above, 0, dotted, INT4_BLOCK),
    "INT4 of AWQ": (awq, above, 1, dotted, {"quant_method": "awq", "bits": 4, "group_size": 64}),
    "MXFP4 of OpenAI": (ours(MXFP4), taking_turns, 0, openai, {"quant_method": "mxfp4"}),
}


@pytest.fixture(scope="module")
def dense(tinyglm):
    found = {}
    for file in sorted(tinyglm("bf16").glob("*.safetensors")):
        found |= {name: tensor for name, tensor in load_file(file).items() if name.startswith(P)}
    return found


@pytest.fixture(scope="module")
def source(dense, tinyglm, tmp_path_factory):
    """name -> folder with stacks, folder with the same parts one by one."""
    made = {}

    def write(name):
        if name not in made:
            pack, join, axis, spell, block = STACKS[name]
            rest = {key: tensor for key, tensor in dense.items() if not key.startswith(E)}
            pairs, downs, single = [], [], dict(rest)
            for number in range(N):
                gate, up, down = (dense[f"{E}{number}.{p}_proj.weight"].float() for p in ("gate", "up", "down"))
                packed = {"gate_proj": (both := pack([gate, up]))[0], "up_proj": both[1], "down_proj": pack([down])[0]}
                pairs.append(join(both, axis))
                downs.append(packed["down_proj"])
                single |= {f"{E}{number}.{m}.{s}": part for m, parts in packed.items() for s, part in parts.items()}
            stacks = spell(f"{E}gate_up_proj", stacked(pairs)) | spell(f"{E}down_proj", stacked(downs))
            config = json.loads((tinyglm("bf16") / "config.json").read_text())
            made[name] = []
            for tensors in (rest | stacks, single):
                folder = tmp_path_factory.mktemp("source")
                held = {key: tensor.contiguous() for key, tensor in tensors.items()}
                save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
                stated = {"quantization_config": block} if block else {}
                (folder / "config.json").write_text(json.dumps(config | stated))
                made[name].append(folder)
        return made[name]

    return write


def made_of(folder, target, out, **asked):
    opened = open_checkpoint(str(folder))
    draft = build(plan(opened, target, **asked), {"source": opened, "target": target}, out, check="off")
    assert failed(verify(draft.path, target, opened)) == {}
    (file,) = draft.path.glob("*.safetensors")
    return load_file(file)


def stored(folder):
    opened = open_checkpoint(str(folder))
    return opened, stored_layer(opened, family_of(opened.config)).modules


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_holds_what_its_experts_hold(source, dense, name):
    stacks, single = source(name)
    opened, modules = stored(stacks)
    expected = None if name == "INT4 of AWQ" else layouts.weights(single)
    for key in (key for key in dense if key.startswith(E)):
        weight = modules[key.removeprefix(P).removesuffix(".weight")].weight(Reader(opened.read))
        values = torch.cat([band.clone() for band in weight.decoded()]).bfloat16().float()
        wanted = expected[key] if expected else packers.awq(dense[key].float(), 64)[1].bfloat16().float()
        assert torch.equal(values, wanted), key


@pytest.mark.parametrize("name", ["MXFP4 of OpenAI", "INT4 of AWQ"])
def test_the_reference_check_reads_the_same_cuts(source, name):
    opened, modules = stored(source(name)[0])
    for expert in (0, 11):
        for suffix, ref in modules[f"mlp.experts.{expert}.up_proj"].parts.items():
            whole = Reader(opened.read).tensor(ref).view(torch.uint8)
            lies = Part(str(opened.local_file(ref.file)), ref.spec.dtype, ref.spec.shape, ref.start, ref.stride)
            (raw, shape), n_rows = lies.rows(1, 7), len(whole)
            assert shape == (min(n_rows, 7) - 1, *ref.spec.shape[1:])
            assert bytes(raw) == whole[1:7].contiguous().numpy().tobytes(), suffix


def test_integers_are_copied_as_they_are_stored(source, tinyglm, tmp_path):
    stacks, single = source("INT4 of compressed-tensors")
    written = made_of(stacks, open_checkpoint(str(tinyglm("awq-int4"))), tmp_path / "draft")
    expected = load_file(single / "model.safetensors")
    for name in (n for n in written if n.startswith(E)):
        assert torch.equal(written[name], expected[name]), name


def test_a_stack_of_activation_scales_is_each_expert_s_own(source, tinyglm, tmp_path):
    """One a stack of gate and up, for both of an expert; NVFP4 stores the amax over 6 * 448."""
    stacks, _ = source("NVFP4 of ModelOpt")
    tensors, scales = load_file(stacks / "model.safetensors"), 0.5 + torch.arange(N).float()
    own = {f"{E}gate_up_proj_input_scale": scales, f"{E}down_proj_input_scale": scales * 2}
    (folder := tmp_path / "source").mkdir()
    save_file(tensors | own, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((stacks / "config.json").read_bytes())
    written = made_of(folder, open_checkpoint(str(tinyglm("nvfp4"))), tmp_path / "draft")
    for number in range(N):
        held = [float(written[f"{E}{number}.{p}_proj.input_scale"]) for p in ("gate", "up", "down")]
        assert held == [0.5 + number, 0.5 + number, 1 + 2 * number]


@pytest.mark.parametrize("name", ["BF16 of transformers", "MXFP4 of OpenAI"])
def test_a_dropped_expert_is_not_read(source, tinyglm, tmp_path, name, monkeypatch):
    stacks, _ = source(name)
    kept = (1, 2, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15)
    read, fill = [], Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, ref, into: read.append(ref) or fill(self, ref, into))
    opened, target = open_checkpoint(str(stacks)), open_checkpoint(str(tinyglm("awq-int4-12experts")))
    build(plan(opened, target, kept=kept), {"source": opened, "target": target}, tmp_path / "draft", check="off")
    whole = opened.locate(n for n in opened.names if n.startswith(E))
    for ref in whole.values():
        step = (ref.stop - ref.start) // N
        touched = {
            number
            for number in range(N)
            for r in read
            if r.start < ref.start + (number + 1) * step and r.stop > ref.start + number * step
        }
        assert touched == set(kept), ref.name


def refusal_of(folder, to, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    stored(to)


def transposed(t):
    t[f"{E}gate_up_proj"] = t[f"{E}gate_up_proj"].transpose(1, 2)


def one_twice(t):
    t[f"{E}3.down_proj.weight"] = t[f"{E}down_proj"][3].clone()


def one_less(t):
    t[f"{E}down_proj"] = t[f"{E}down_proj"][:-1]


def without_down(t):
    del t[f"{E}down_proj"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (transposed, r"`mlp\.experts\.gate_up_proj` is stored in no known way"),
        (one_twice, r"`mlp\.experts\.3\.down_proj\.weight` is stored twice"),
        (one_less, r"`mlp\.experts\.15\.down_proj` of the MTP layer is missing"),
        (without_down, r"`mlp\.experts\.0\.down_proj` of the MTP layer is missing"),
    ],
)
def test_a_stack_that_is_none_is_refused(source, tmp_path, change, what):
    with pytest.raises(MtpforgeError, match=what):
        refusal_of(source("BF16 of transformers")[0], tmp_path, change)


def test_parts_for_different_numbers_of_experts_are_refused(source, tmp_path):
    def shorter(t):
        t[f"{E}gate_up_proj_scales"] = t[f"{E}gate_up_proj_scales"][:-1]

    with pytest.raises(MtpforgeError, match=r"`mlp\.experts\.gate_up_proj` is no stack of experts"):
        refusal_of(source("MXFP4 of OpenAI")[0], tmp_path, shorter)


@pytest.mark.parametrize(("experts", "suffixes"), [(70_000, [""]), (2_000, [f"_{n}" for n in range(40)])])
def test_a_stack_without_end_is_refused(tinyglm, experts, suffixes):
    """Of a byte each: a small file that claims them is no reason to make a ref for every one."""
    config = json.loads((tinyglm("bf16") / "config.json").read_text())
    name, spec = "mlp.experts.down_proj", Spec("U8", (experts, 1, 1))
    refs = {name + suffix: TensorRef(name + suffix, spec, "model.safetensors", 0, experts) for suffix in suffixes}
    with pytest.raises(MtpforgeError, match="holds more experts than any model has"):
        unstacked(family_of(config), config, {}, refs)


def test_a_suffix_may_have_dots_of_its_own(tinyglm, monkeypatch):
    monkeypatch.setattr(stored_as, "_DOTTED", ("weight.absmax",))
    config = json.loads((tinyglm("bf16") / "config.json").read_text())
    specs = {"weight": Spec("U8", (2, 8, 16)), "weight.absmax": Spec("F32", (2, 8, 1)), "no.absmax": Spec("F32", (2,))}
    names = {suffix: f"mlp.experts.down_proj.{suffix}" for suffix in specs}
    refs = {names[s]: TensorRef(names[s], spec, "model.safetensors", 0, spec.n_bytes) for s, spec in specs.items()}
    found = unstacked(family_of(config), config, {}, refs)
    own = {f"mlp.experts.{n}.down_proj.{suffix}" for n in range(2) for suffix in ("weight", "weight.absmax")}
    assert found.keys() == own | {"mlp.experts.down_proj.no.absmax"}


@pytest.mark.parametrize("name", ["MXFP4 of OpenAI", "INT4 of AWQ", "BF16 of transformers"])
def test_what_a_plan_reads_are_the_layer_s_own_bytes(source, tinyglm, name):
    """Rows that take turns lie in ranges that overlap: each byte counts once, or a plan says twice the file."""
    folder, _ = source(name)
    tensors = load_file(folder / "model.safetensors")
    made = plan(open_checkpoint(str(folder)), open_checkpoint(str(tinyglm("bf16"))))
    read = {ref.name.partition("[")[0] for step in made.steps for ref in step.reads}
    expected = sum(tensors[name].nbytes for name in read)
    # between the first and the last row of a half, other halves lie: all but the ends of a stack
    assert made.facts["read_bytes"] == expected


@pytest.mark.parametrize(
    ("shape", "n_experts", "of_one"),
    [((), 4, ()), ((), 1, ()), ((1,), 4, (1,)), ((1,), 1, ()), ((4,), 4, ()), ((4, 1), 4, (1,)), ((1, 1), 1, (1,))],
)
def test_a_single_number_is_of_all_experts_unless_there_is_one_expert(shape, n_experts, of_one):
    n_bytes = 4 * math.prod(shape)
    ref = TensorRef("s", Spec("F32", shape), "x.safetensors", 100, 100 + n_bytes)
    for number in range(n_experts):
        part = stacked_experts._of_expert("weight_scale_2", ref, number, n_experts)
        assert part.spec.shape == of_one
        assert part.name == f"s[{number}]"
        is_shared = math.prod(shape) == 1
        assert (part.start, part.stop) == ((100, 104) if is_shared else (100 + 4 * number, 104 + 4 * number))
