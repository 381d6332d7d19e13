"""From what was seen while loading to errors and notes: a small module in the place of an engine's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mtpforge.engines.loading.coverage import Coverage
from mtpforge.engines.loading.verdict import Findings, Rank, judge_dropped, judge_rank, spans
from mtpforge.engines.loading.watch import Watch
from mtpforge.engines.vllm.loader import configs
from mtpforge.engines.vllm.loader.habits import HABITS, HELD_BACK


class Layer(torch.nn.Module):
    """Four experts of [6, 4] and a norm."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.Module()
        self.experts.w13_weight = torch.nn.Parameter(torch.empty(4, 6, 4), requires_grad=False)
        self.norm = torch.nn.Parameter(torch.empty(4), requires_grad=False)


STORED = {"norm": torch.ones(4)} | {
    f"experts.{n}.{half}_proj": torch.ones(3, 4) for n in range(4) for half in ("gate", "up")
}


def place(model, name, tensor):
    """Load as an engine does: gate_proj above up_proj, one expert after the other."""
    if name == "norm":
        model.norm.data.copy_(tensor)
    else:
        _, n, projection = name.split(".")
        row = 3 * (projection == "up_proj")
        model.experts.w13_weight.data[int(n), row : row + 3].copy_(tensor)


def load(stored, loading=place):
    model = torch.nn.Module()
    model.layer = Layer()
    watch = Watch(model, HELD_BACK)
    with watch:
        for name, tensor in watch.feed(stored.items()):
            loading(model.layer, name, tensor)
    watch.settle()
    findings = Findings()
    judge_rank(Rank(watch, model, "", HABITS, first=True), findings)
    judge_dropped(stored, {name: read.used for name, read in watch.reads.items()}, HABITS, (3, 1), findings)
    return findings


def test_complete_load_has_nothing_to_say():
    findings = load(STORED)
    assert (findings.errors, findings.notes) == ([], [])
    assert findings.facts["parameters"] == {"total": 2, "loaded": 2}


def test_missing_half_of_an_expert_is_named_with_its_rows():
    findings = load({name: t for name, t in STORED.items() if name != "experts.2.up_proj"})
    assert findings.errors == ["layer.experts.w13_weight [4, 6, 4]: not loaded: experts 2 at 3:6, 0:4"]


def test_missing_experts_are_named_as_ranges():
    findings = load({name: t for name, t in STORED.items() if name == "norm" or ".3." in name})
    assert findings.errors == [
        "layer.experts.w13_weight [4, 6, 4]: not loaded: experts 0-2 at 0:3, 0:4; experts 0-2 at 3:6, 0:4"
    ]


def test_parameter_that_nothing_wrote_is_named():
    findings = load({name: t for name, t in STORED.items() if name != "norm"})
    assert findings.errors == ["layer.norm [4]: nothing loaded"]


def test_tensor_that_the_loader_drops_is_an_error():
    def forgetful(model, name, tensor):
        if name != "spare":
            place(model, name, tensor)

    findings = load(STORED | {"spare": torch.ones(2)}, forgetful)
    assert findings.errors == ["spare: read and dropped without a word"]


def test_tensor_used_in_part_is_an_error():
    def cutting(model, name, tensor):
        place(model, name, tensor[:4] if name == "norm" else tensor)

    findings = load(STORED | {"norm": torch.ones(6)}, cutting)
    assert findings.errors == ["norm [6]: only a part was used; unused: [4:6]"]


def test_part_written_twice_is_an_error_that_names_the_writers():
    def twice(model, name, tensor):
        place(model, name, tensor)
        if name == "experts.3.up_proj":
            place(model, "experts.2.up_proj", tensor)

    (error,) = load(STORED, twice).errors
    assert error.startswith("layer.experts.w13_weight: a part was written more than once, by experts.0.gate_proj, ")


def test_expert_written_over_another_leaves_its_own_place_open():
    errors = load(STORED, lambda m, n, t: place(m, n.replace(".3.", ".2."), t)).errors
    assert errors == ["layer.experts.w13_weight [4, 6, 4]: not loaded: experts 3 at 0:3, 0:4; experts 3 at 3:6, 0:4"]


def test_integer_cast_to_float_is_an_error_and_float_widening_is_not():
    assert load(STORED | {"norm": torch.ones(4, dtype=torch.bfloat16)}).errors == []
    assert load(STORED | {"norm": torch.ones(4, dtype=torch.uint8)}).errors == [
        "norm is uint8, layer.norm is float32: vLLM converts it without a word"
    ]


@pytest.mark.parametrize(("seen_as", "n_errors"), [(lambda t: t.view(torch.float32), 0), (lambda t: t.float(), 1)])
def test_bytes_that_are_seen_as_another_dtype_are_not_converted_whatever_is_made_of_them(seen_as, n_errors):
    """As vLLM turns over the words of Quark's INT4 experts."""

    def turned_over(model, name, tensor):
        place(model, name, seen_as(tensor).flip(0) if name == "norm" else tensor)

    assert len(load(STORED | {"norm": torch.ones(4, dtype=torch.int32)}, turned_over).errors) == n_errors


def test_narrowing_between_floats_is_a_note():
    findings = load(STORED | {"norm": torch.ones(4, dtype=torch.float64)})
    assert findings.errors == []
    assert findings.notes == ["norm is float64, layer.norm is float32: vLLM converts it without a word"]


def test_broadcast_is_an_error():
    findings = load(STORED | {"norm": torch.ones(1)})
    assert findings.errors == ["norm [1] was spread over layer.norm block [4]"]


def test_scalar_taken_by_item_counts_as_used():
    findings = load(
        STORED | {"norm": torch.tensor(2.0)},
        lambda m, n, t: m.norm.data.fill_(t.item()) if n == "norm" else place(m, n, t),
    )
    assert findings.errors == []


def test_transposed_copy_counts_as_use_of_its_source():
    transposed = {n: t if n == "norm" else t.T.contiguous() for n, t in STORED.items()}
    findings = load(transposed, lambda m, n, t: place(m, n, t if n == "norm" else t.T.contiguous()))
    assert findings.errors == []


def test_layers_below_are_passed_over_and_a_layer_above_is_not():
    findings = Findings()
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.2.norm.weight", "lm_head.weight", "model.layers.4.x"]
    judge_dropped(names, {name: Coverage((2,)) for name in names}, HABITS, (3, 1), findings)
    assert findings.errors == ["model.layers.4.x: read and dropped without a word"]
    assert findings.notes == ["3 tensors outside the MTP layer passed over: main layers (2 tensors), lm_head.weight"]


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([2, 0, 1, 5, 5], "0-2, 5"), (range(256), "0-255")]
)
def test_expert_numbers_are_written_as_ranges(numbers, text):
    assert spans(numbers) == text


COMPARED = {"hidden_size": None, "n_group": 1}  # as the table of a draft class says it


def pretrained(**changed):
    same = dict.fromkeys((*COMPARED, "rope_parameters"), 1)
    same |= {"max_position_embeddings": 8, "num_nextn_predict_layers": 1, "n_routed_experts": 4}
    return SimpleNamespace(**(same | changed))


@pytest.mark.parametrize("name", [*COMPARED, "rope_parameters"])
def test_every_compared_field_that_differs_is_an_error(name):
    findings = Findings()
    configs.compare(pretrained(), pretrained(**{name: 2}), COMPARED, findings, same_config=True)
    assert findings.errors == [
        f"config {name}: draft has 2, target 1; vLLM builds the layer with one of them and does not compare"
    ]


def test_foreign_config_is_only_noted_where_asked_for():
    findings = Findings()
    configs.compare(pretrained(), pretrained(n_group=2), COMPARED, findings, same_config=False)
    assert findings.errors == []
    assert len(findings.notes) == 1


def test_target_without_the_nextn_field_is_told_the_override():
    findings = Findings()
    configs.compare(pretrained(num_nextn_predict_layers=None), pretrained(), COMPARED, findings, same_config=True)
    assert len(findings.errors) == 1
    assert "--hf-overrides '{\"num_nextn_predict_layers\": 1}'" in findings.errors[0]


def test_same_configs_have_nothing_to_say():
    findings = Findings()
    configs.compare(pretrained(), pretrained(), COMPARED, findings, same_config=True)
    assert (findings.errors, findings.notes) == ([], [])


def test_absent_field_that_the_class_has_a_default_for_differs_from_another_value_only():
    findings = Findings()
    without = pretrained()
    del without.n_group
    configs.compare(without, pretrained(n_group=1), COMPARED, findings, same_config=True)
    assert findings.errors == []
    configs.compare(without, pretrained(n_group=2), COMPARED, findings, same_config=True)
    assert [error.partition(";")[0] for error in findings.errors] == ["config n_group: draft has 2, target 1"]


def test_router_in_the_model_dtype_is_an_error_where_the_class_wants_another():
    model = torch.nn.Module()
    model.mlp = torch.nn.Module()
    model.mlp.router_dtype = None
    doubts: list[str] = []
    configs.check_built(model, {}, doubts)
    assert doubts == []
    built = {"router_dtype": ("moe_router_dtype", "float32")}
    configs.check_built(model, built, doubts)
    assert doubts == [
        'mlp: router_dtype is None, it must be float32: the draft\'s config.json lacks "moe_router_dtype": "float32"'
    ]
    model.mlp.router_dtype = torch.float32
    configs.check_built(model, built, doubts)
    assert len(doubts) == 1
