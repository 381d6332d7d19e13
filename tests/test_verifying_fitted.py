"""verify on drafts whose codes were fitted to inputs: what a fit can make passes, nonsense does not."""

import json

import pytest
import torch
from drafts import changed, failed, nibbles, weight_file, words
from nextn.calibration import captured, write
from safetensors.torch import load_file

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.formats import FORMATS
from mtpforge.methods import METHODS
from mtpforge.nextn import inputs
from mtpforge.nextn.hessians import Calibration
from mtpforge.planning import plan
from mtpforge.tensors import Quantization
from mtpforge.verifying import verify
from mtpforge.weights import compiling

LAYER = "model.layers.3."
W = f"{LAYER}mlp.experts.5.up_proj."


@pytest.fixture(scope="module")
def draft(tinyglm, tmp_path_factory):
    """Drafts for the INT4 target, by method."""
    folder = tmp_path_factory.mktemp("drafts")
    source, target = (open_checkpoint(str(tinyglm(name))) for name in ("bf16", "awq-int4"))
    held = inputs.read(write(folder / "calib.safetensors", captured(tinyglm("bf16"))))
    made = {}
    for scales in ("rtn", "gptq"):
        fits = scales == "gptq"
        decided = plan(source, target, scales=scales, inputs=held.digest if fits else "")
        calibration = Calibration(source, target, held) if fits else None
        sides = {"source": source, "target": target}
        made[scales] = build(decided, sides, folder / scales, check="off", calibration=calibration).path
    return made


@pytest.fixture(params=["torch", "kernels"])
def judged(request, tinyglm, monkeypatch):
    if request.param == "kernels":
        monkeypatch.setattr(compiling, "WORTH_COMPILING", 0)

    def judge(folder):
        source, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4")))
        return verify(folder, target, source)

    return judge


def claims(folder, method):
    """A manifest with nothing to compare but the method, which may be a lie."""
    body = {"schema": 1, "mtpforge": "0", "plan": "", "source": {"id": "s"}, "target": None, "layer": 3}
    body |= {"n_experts": 16, "tensors": {}, "relative_error": {}, "scales": method}
    (folder / "mtpforge.json").write_text(json.dumps(body))
    return folder


def test_fitted_drafts_pass_and_are_held_against_rtn(draft, judged):
    report = judged(draft["gptq"])
    assert report.ok
    ours, rtn = report.facts["relative_error"], report.facts["rtn_relative_error"]
    plain = judged(draft["rtn"]).facts["relative_error"]
    assert len(rtn) == 51
    assert all(name.startswith("mlp.") for name in rtn)
    assert rtn == pytest.approx({name: plain[name] for name in rtn}, rel=1e-4)
    assert all(ours[name] > rtn[name] for name in rtn)
    (check,) = [c for c in report.checks if c.name == "scales"]
    assert "fitted to inputs in 51 weights" in check.detail
    assert "% more than" in check.detail


@pytest.mark.parametrize("claim", ["rtn", "mse", "hqq"])
def test_without_the_claim_fitted_weights_fail(draft, judged, tmp_path, claim):
    copy = changed(draft["gptq"], tmp_path / "bare", lambda t: t.update(extra=torch.zeros(1)))
    assert "values" in failed(judged(claims(copy, claim)))


def test_rtn_passes_as_a_fit_that_changed_nothing(draft, judged, tmp_path):
    copy = changed(draft["rtn"], tmp_path / "copy", lambda t: t.update(extra=torch.zeros(1)))
    assert "values" not in failed(judged(claims(copy, "gptq")))


def codes_of_another_expert(tensors):
    tensors[W + "weight_packed"] = tensors[f"{LAYER}mlp.experts.6.up_proj.weight_packed"].clone()


def other_expert(tensors):
    for suffix in ("weight_packed", "weight_scale", "weight_zero_point"):
        tensors[W + suffix] = tensors[f"{LAYER}mlp.experts.6.up_proj." + suffix].clone()


def shuffled_group(tensors):
    codes = nibbles(tensors[W + "weight_packed"])
    codes[7, 32:64] = codes[7, 32:64].roll(5)
    tensors[W + "weight_packed"] = words(codes)


def shifted_columns(tensors):
    tensors[W + "weight_packed"] = words(nibbles(tensors[W + "weight_packed"]).roll(1, 1))


def swapped_rows(tensors):
    tensors[W + "weight_packed"][[3, 4]] = tensors[W + "weight_packed"][[4, 3]]


def all_zero(tensors):
    tensors[W + "weight_packed"][:] = 0


def all_zero_group(tensors):
    tensors[W + "weight_packed"][9, :4] = 0


def all_at_zero_point(tensors):
    """Decodes to zeros: the least that passes every bound of a single weight."""
    zero = nibbles(tensors[W + "weight_zero_point"].t()).t()[: len(tensors[W + "weight_scale"])]
    tensors[W + "weight_packed"] = words(zero.repeat_interleave(32, 1))


def one_code_at_the_other_end(tensors):
    codes = nibbles(tensors[W + "weight_packed"])
    row, column = divmod(int((codes == 0).flatten().nonzero()[0]), codes.shape[1])
    codes[row, column] = 15
    tensors[W + "weight_packed"] = words(codes)


def one_scale_a_bit_wider(tensors):
    view = tensors[W + "weight_scale"].view(torch.int16)
    view[5, 2] += 1


def one_zero_point(tensors):
    tensors[W + "weight_zero_point"][2, 1] ^= 1


def attention_led_astray(tensors):
    """No expert: round-to-nearest's bounds hold there."""
    codes = nibbles(tensors[f"{LAYER}self_attn.o_proj.weight_packed"])
    inner = (codes[4] > 0) & (codes[4] < 13)
    codes[4, inner.nonzero()[0]] += 2
    tensors[f"{LAYER}self_attn.o_proj.weight_packed"] = words(codes)


NONSENSE = [
    codes_of_another_expert,
    other_expert,
    shuffled_group,
    shifted_columns,
    swapped_rows,
    all_zero,
    all_zero_group,
    all_at_zero_point,
    one_code_at_the_other_end,
    one_scale_a_bit_wider,
    one_zero_point,
    attention_led_astray,
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("lie", NONSENSE, ids=lambda lie: lie.__name__)
def test_a_claim_lets_no_nonsense_pass(draft, judged, tmp_path, lie):
    report = judged(claims(changed(draft["gptq"], tmp_path / "lying", lie), "gptq"))
    where = "self_attn.o_proj" if lie is attention_led_astray else "experts.5.up_proj"
    assert "1 modules are not the source's" in failed(report)["values"]
    assert where in failed(report)["values"]


def test_nothing_but_codes_of_experts_may_differ_from_rtn(draft):
    ours, rtn = (load_file(weight_file(draft[method])) for method in ("gptq", "rtn"))
    differing = {name for name in ours if not torch.equal(ours[name], rtn[name])}
    assert differing == {n for n in ours if ".mlp." in n and n.endswith("_proj.weight_packed")}


WIDE = Quantization("pack_quantized", 4, strategy="group", group_size=128, symmetric=True, scale_dtype="BF16")


def others_shifted(codes):
    """Every code by one: near each weight, 13 times rtn's squared error."""
    return torch.where(codes < 15, codes + 1, codes - 1)


def group_shifted(codes):
    """One group of 64 by three: less than the row's bound, and near each weight."""
    moved = codes.clone()
    moved[1, 128:256] = torch.where(codes[1, 128:256] < 12, codes[1, 128:256] + 3, codes[1, 128:256] - 3)
    return moved


def code_at_the_other_end(codes):
    """One of 128: little in the mean of its group."""
    moved = codes.clone()
    moved[1, int(codes[1].argmin())] = 15
    return moved


@pytest.mark.parametrize("move", [others_shifted, group_shifted, code_at_the_other_end], ids=lambda m: m.__name__)
def test_each_bound_holds_alone(move):
    """Of 8,192 columns: what one of the three bounds lets pass, another one finds."""
    weight = torch.randn(3, 8192, generator=torch.Generator().manual_seed(0))
    parts = FORMATS["pack_quantized"].encode(weight, WIDE, {})
    form = FORMATS["pack_quantized"]
    judge = lambda parts: METHODS["gptq"].judge(parts, form, WIDE, weight, form.decode(parts, (3, 8192), WIDE))  # noqa: E731
    assert not judge(parts).beyond.any()
    codes = nibbles(parts["weight_packed"])
    moved = move(codes)
    assert int((moved != codes).any(1)[1])
    assert judge({**parts, "weight_packed": words(moved)}).beyond[1].any()
