"""What a build writes, refuses and leaves behind; plans by hand over a small folder."""

from __future__ import annotations

import hashlib
import json
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_plans import DENSE, FP8, INT4, MODELOPT, NVFP4, carry, checkpoint, move, plan, scale, weight, weights_of

from mtpforge import manifest
from mtpforge.building import build, building, executing
from mtpforge.building.crew import Crew
from mtpforge.checking import CheckResult
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.planning.steps import Step
from mtpforge.report import Check, Report
from mtpforge.tensors import Quantization
from mtpforge.writing import effects, folder

SHAPE = (640, 256)


@pytest.fixture(autouse=True)
def low_bands(monkeypatch):
    """Five bands a matrix, so that what bands may break is seen on small ones."""
    monkeypatch.setattr(executing, "band_rows", lambda _: 128)


@pytest.fixture
def dense(tmp_path):
    """A source of BF16 tensors and a plan that carries them all."""
    tensors = {f"layer.{i}.weight": weight(64, 32, i) for i in range(6)} | {
        "bias": torch.arange(12, dtype=torch.float32)
    }
    source = checkpoint(tmp_path / "source", tensors, {"LICENSE": "MIT", "NOTICE": "theirs\n"})
    return source, plan(source, [carry(source, n) for n in tensors]), tensors


def stored(quantization, values):
    """Parts of a weight for a source; how they were made does not matter here."""
    form = FORMATS[quantization.format]
    matrix = form.matrix_parts(tuple(values.shape), quantization, values.abs().amax())
    return matrix | form.encode(values, quantization, matrix)


def refused(source, steps, out, **options):
    with pytest.raises(MtpforgeError) as caught:
        build(plan(source, steps), {"source": source}, out, check="off", **options)
    assert [p.name for p in out.parent.iterdir() if p.name != "source"] == []
    return caught.value


def test_carried_tensors_are_the_library_file(dense, tmp_path):
    source, made, tensors = dense
    draft = build(made, {"source": source}, tmp_path / "draft", check="off")
    save_file(tensors, tmp_path / "library", metadata={"format": "pt"})
    assert (tmp_path / "draft" / "model.safetensors").read_bytes() == (tmp_path / "library").read_bytes()
    assert sorted(p.name for p in draft.path.iterdir()) == [
        "LICENSE",
        "NOTICE",
        "config.json",
        "model.safetensors",
        "mtpforge.json",
    ]
    assert (draft.path / "config.json").read_text() == '{\n  "model_type": "glm_moe_dsa"\n}\n'
    assert (draft.path / "LICENSE").read_text() == "MIT"
    assert (
        (draft.path / "NOTICE")
        .read_text()
        .startswith(f"theirs\n\nThe weights of this draft are layer 3 of {source.identity}")
    )


@pytest.mark.parametrize("workers", [2, 4])
def test_number_of_workers_changes_no_byte(dense, tmp_path, workers):
    source, made, _ = dense
    one = build(made, {"source": source}, tmp_path / "one", workers=1, check="off")
    many = build(made, {"source": source}, tmp_path / "many", workers=workers, check="off")
    assert {p.name: p.read_bytes() for p in one.path.iterdir()} == {p.name: p.read_bytes() for p in many.path.iterdir()}


def test_shards_get_an_index_of_the_layer(dense, tmp_path):
    source, made, tensors = dense
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", max_shard_bytes=8192)
    index = json.loads((draft.path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert {p.name for p in draft.path.glob("*.safetensors")} == set(index["weight_map"].values())


def test_kept_rows_and_cast(tmp_path):
    router = weight(12, 64, 1, torch.float32)
    source = checkpoint(tmp_path / "source", {"gate.weight": router, "bias": torch.arange(12, dtype=torch.bfloat16)})
    kept = (0, 1, 5, 6, 7, 11)
    steps = [carry(source, "gate.weight", "BF16", kept), carry(source, "bias", "F32", kept)]
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
    made = load_file(draft.path / "model.safetensors")
    assert torch.equal(made["gate.weight"], router[list(kept)].bfloat16())
    assert torch.equal(made["bias"], torch.tensor(kept, dtype=torch.float32))


@pytest.mark.parametrize("quantization", [DENSE, FP8, MODELOPT, INT4], ids=str)
def test_weight_stored_as_demanded_is_copied_byte_for_byte(tmp_path, quantization):
    parts = {f"m.{s}": t for s, t in stored(quantization, weight(*SHAPE).float()).items()}
    source = checkpoint(tmp_path / "source", parts)
    steps = [Step(moves=(move(source, "m", SHAPE, quantization, quantization, action="copy"),))]
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
    save_file(parts, tmp_path / "library", metadata={"format": "pt"})
    assert (draft.path / "model.safetensors").read_bytes() == (tmp_path / "library").read_bytes()


def test_scale_is_widened_without_loss_in_a_copy(tmp_path):
    narrow = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="BF16")
    parts = {f"m.{s}": t for s, t in stored(narrow, weight(*SHAPE).float()).items()}
    source = checkpoint(tmp_path / "source", parts)
    steps = [Step(moves=(move(source, "m", SHAPE, narrow, FP8, action="copy"),))]
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
    made = load_file(draft.path / "model.safetensors")
    assert torch.equal(made["m.weight_scale_inv"], parts["m.weight_scale_inv"].float())


def test_bands_make_what_the_library_makes_of_the_whole(tmp_path):
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    values = weight(*SHAPE).float()
    source = checkpoint(tmp_path / "source", {"m.weight": values})
    dense = Quantization("dense", 32, "F32")
    steps = [Step(moves=(move(source, "m", SHAPE, dense, INT4),))]
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
    made = load_file(draft.path / "model.safetensors")

    args = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=32, symmetric=False, scale_dtype=torch.bfloat16
    )
    groups = values.view(SHAPE[0], -1, 32)
    scales, zero_points = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = {"weight": values, "weight_scale": scales, "weight_zero_point": zero_points}
    expected = PackedQuantizationCompressor.compress(state, scheme)
    assert set(made) == {f"m.{s}" for s in expected if s != "weight_g_idx"}
    for suffix in expected:
        assert torch.equal(made[f"m.{suffix}"], expected[suffix].to(made[f"m.{suffix}"].dtype)), suffix


def test_gate_and_up_share_one_global_scale_from_the_larger(tmp_path):
    gate, up = weight(*SHAPE, 1), weight(*SHAPE, 2) * 3
    source = checkpoint(tmp_path / "source", {"gate.weight": gate, "up.weight": up})
    pair = tuple(move(source, n, SHAPE, DENSE, NVFP4) for n in ("gate", "up"))
    draft = build(plan(source, [Step(moves=pair, ties=True)]), {"source": source}, tmp_path / "draft", check="off")
    made = load_file(draft.path / "model.safetensors")
    expected = torch.tensor([448 * 6]) / up.float().abs().amax()
    assert torch.equal(made["gate.weight_global_scale"], expected)
    assert torch.equal(made["up.weight_global_scale"], expected)


@pytest.mark.parametrize("factor", [1, 2])
def test_tied_copies_stay_copies_only_while_their_global_scales_agree(tmp_path, factor):
    values = weight(*SHAPE).float()
    gate, up = stored(MODELOPT, values), stored(MODELOPT, values * factor)
    parts = {f"gate.{s}": t for s, t in gate.items()} | {f"up.{s}": t.clone() for s, t in up.items()}
    source = checkpoint(tmp_path / "source", parts)
    pair = tuple(move(source, n, SHAPE, MODELOPT, MODELOPT, action="copy") for n in ("gate", "up"))
    step = Step(moves=pair, ties=True, tied_suffix="weight_scale_2")
    made = load_file(
        build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="off").path / "model.safetensors"
    )
    assert torch.equal(made["gate.weight_scale_2"], made["up.weight_scale_2"])
    assert all(torch.equal(made[n].float(), t.float()) for n, t in parts.items()) == (factor == 1)
    assert float(made["up.weight_scale_2"]) == pytest.approx(float(up["weight_scale_2"]), rel=1e-6)


def test_input_scale_is_the_largest_in_the_convention_of_the_draft(tmp_path):
    source = checkpoint(
        tmp_path / "source", {f"{i}.input_scale": torch.tensor(s) for i, s in enumerate((0.5, 0.75, 0.25))}
    )
    names = [f"{i}.input_scale" for i in range(3)]
    steps = [
        scale(source, names, "same"),
        scale(source, names, "fp8", made=(448.0, False)),
        scale(source, names, "ct", made=(2688.0, True)),
    ]
    made = load_file(
        build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off").path / "model.safetensors"
    )
    assert {n: float(t) for n, t in made.items()} == {"same": 0.75, "fp8": 4.5, "ct": pytest.approx(1 / 0.75)}


@pytest.mark.parametrize(("bad", "place"), [(float("nan"), [300, 7]), (float("inf"), [639, 255])])
@pytest.mark.parametrize("wanted", [INT4, NVFP4, DENSE], ids=str)
def test_weight_that_is_no_number_is_refused_by_name(tmp_path, bad, place, wanted):
    values = weight(*SHAPE)
    values[tuple(place)] = bad
    source = checkpoint(tmp_path / "source", {"m.weight": values})
    action = "copy" if wanted == DENSE else "encode"
    error = refused(source, [Step(moves=(move(source, "m", SHAPE, DENSE, wanted, action=action),))], tmp_path / "draft")
    assert error.what == "the source holds a number that no weight may hold"
    assert error.where == "model.safetensors, tensor m.weight"
    assert f"value {place}" in error.why
    assert error.code == 3


def test_carried_tensor_that_is_no_number_is_refused_by_name(tmp_path):
    values = weight(12, 64)
    values[11, 3] = float("nan")
    source = checkpoint(tmp_path / "source", {"norm": values})
    assert refused(source, [carry(source, "norm")], tmp_path / "draft").why == "value [11, 3] is not a finite number"


SCALES = [
    (MODELOPT, "weight_scale_2", ()),
    (NVFP4, "weight_global_scale", (0,)),
    (MODELOPT, "weight_scale", (200, 3)),
    (FP8, "weight_scale_inv", (4, 1)),
    (INT4, "weight_scale", (639, 7)),
]


@pytest.mark.parametrize("action", ["copy", "encode"])
@pytest.mark.parametrize("bad", [0.0, float("nan")])
@pytest.mark.parametrize(("quantization", "suffix", "place"), SCALES, ids=str)
def test_zero_and_nan_scales_are_refused_by_name(*, tmp_path, quantization, suffix, place, bad, action):
    parts = stored(quantization, weight(*SHAPE).float())
    assert float(parts[suffix][place]) not in {0.0, bad}
    parts[suffix][place] = bad
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    wanted = quantization if action == "copy" else Quantization("dense", 16, "BF16")
    error = refused(
        source, [Step(moves=(move(source, "m", SHAPE, quantization, wanted, action=action),))], tmp_path / "draft"
    )
    assert error.where == f"model.safetensors, tensor m.{suffix}"
    assert (f"value {list(place)}" if place else "its value") in error.why
    assert ("zero scale" in error.why) == (bad == 0)


def test_zero_block_scale_over_zero_codes_is_sound(tmp_path):
    values = weight(*SHAPE).float()
    values[200, 48:64] = 0
    parts = stored(MODELOPT, values)
    parts["weight_scale"][200, 3] = 0
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    build(
        plan(source, [Step(moves=(move(source, "m", SHAPE, MODELOPT, MODELOPT, action="copy"),))]),
        {"source": source},
        tmp_path / "draft",
        check="off",
    )


def test_judge_sees_the_whole_draft_and_its_no_leaves_nothing(dense, tmp_path):
    source, made, tensors = dense
    seen = []

    def judge(path):
        seen.append((sorted(p.name for p in path.iterdir()), set(load_file(path / "model.safetensors"))))
        return Report("verify", (Check("names", "failed", "3 are missing", "build again"),))

    with pytest.raises(MtpforgeError) as caught:
        build(made, {"source": source}, tmp_path / "draft", check="off", judge=judge)
    assert seen == [(["LICENSE", "NOTICE", "config.json", "model.safetensors", "mtpforge.json"], set(tensors))]
    assert (caught.value.code, caught.value.why, caught.value.fix) == (1, "names: 3 are missing", "build again")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_word_of_the_judge_is_in_the_manifest(dense, tmp_path):
    source, made, _ = dense
    report = Report("verify", (Check("names", "passed", "7 tensors"),), facts={"relative_error": {"m": 0.25}})
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", judge=lambda _: report)
    assert draft.report.checks == (Check("reference", "not checked", "switched off"), *report.checks)
    assert draft.manifest.relative_error == {"m": 0.25}
    assert {"name": "names", "verdict": "passed", "detail": "7 tensors", "fix": ""} in draft.manifest.body["checks"]


def test_not_enough_disk_is_said_before_anything_is_written(dense, tmp_path, monkeypatch):
    source, made, _ = dense
    monkeypatch.setattr("mtpforge.building.building.room", lambda _: 1000)
    with pytest.raises(MtpforgeError, match=r"not enough disk: 0\.00 GB are needed, 0\.00 GB are free"):
        build(made, {"source": source}, tmp_path / "draft", check="off")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def interrupt_at(monkeypatch, n, failure):
    real, left = effects.put, [n]

    def put(*args):
        left[0] -= 1
        if not left[0]:
            raise failure
        real(*args)

    monkeypatch.setattr(effects, "put", put)


def test_interruption_keeps_finished_steps_and_the_same_command_goes_on(dense, tmp_path, monkeypatch):
    source, made, tensors = dense
    whole = build(made, {"source": source}, tmp_path / "whole", check="off")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, KeyboardInterrupt())  # the header and three tensors are written
        with pytest.raises(MtpforgeError) as caught:
            build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)
    assert str(caught.value) == (
        f"error: interrupted\ncause: 3 finished steps are kept in {tmp_path}/.draft.mtpforge-tmp\n"
        " hint: the same command goes on from there"
    )
    assert caught.value.code == 130
    assert not (tmp_path / "draft").exists()
    written = []
    put = DraftPut(monkeypatch, written)
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)
    assert put.names == [*list(tensors)[3:]]
    assert {p.name: p.read_bytes() for p in draft.path.iterdir()} == {
        p.name: p.read_bytes() for p in whole.path.iterdir()
    }


class DraftPut:
    """Notes which tensors are written."""

    def __init__(self, monkeypatch, names):
        self.names, real = names, folder.DraftFolder.put

        def put(draft, name, offset, data):
            names.append(name)
            real(draft, name, offset, data)

        monkeypatch.setattr(folder.DraftFolder, "put", put)


def test_damaged_step_of_an_earlier_run_is_made_again(dense, tmp_path, monkeypatch):
    source, made, tensors = dense
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, KeyboardInterrupt())
        with pytest.raises(MtpforgeError):
            build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)
    weights = tmp_path / ".draft.mtpforge-tmp" / "draft" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    at = damaged.index(bytes(tensors["layer.1.weight"].view(torch.uint8).numpy().data))
    damaged[at] ^= 1
    weights.write_bytes(damaged)
    put = DraftPut(monkeypatch, [])
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", workers=1)
    assert put.names[0] == "layer.1.weight"
    assert torch.equal(load_file(draft.path / "model.safetensors")["layer.1.weight"], tensors["layer.1.weight"])


def test_bug_in_an_encoder_is_no_draft(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "source", {"norm": weight(2, 2)})
    step = carry(source, "norm", "F32")
    monkeypatch.setattr("mtpforge.building.plain._cast", lambda _, values: values)
    with pytest.raises(AssertionError, match=r"norm: torch.bfloat16 \[2, 2\] made, F32 \[2, 2\] planned"):
        build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="off")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_steps_wait_for_memory_and_a_large_one_runs_alone():
    steps = [Step(peak_bytes=n << 30) for n in (1, 1, 1, 9, 1)]
    lock, held, most = threading.Lock(), [], []

    def work(_, step):
        with lock:
            held.append(step.peak_bytes >> 30)
            most.append(sorted(held))
        threading.Event().wait(0.01)
        with lock:
            held.remove(step.peak_bytes >> 30)

    Crew(steps, 4, (2 << 30) + (600 << 20)).run(lambda: work)
    assert len(most) == 5
    assert max(len(now) for now in most) == 2
    assert [9] in most
    assert not any(9 in now and len(now) > 1 for now in most)


def test_failure_of_the_earliest_step_is_told():
    barrier = threading.Barrier(2, timeout=10)

    def work(index, _):
        barrier.wait()
        raise ValueError(index)

    with pytest.raises(ValueError, match=r"^0$"):
        Crew([Step(), Step()], 2, 4 << 30).run(lambda: work)


def test_torch_keeps_its_threads_for_the_caller(dense, tmp_path):
    source, made, _ = dense
    before = torch.get_num_threads()
    build(made, {"source": source}, tmp_path / "draft", check="off", workers=2)
    assert torch.get_num_threads() == before


def test_progress_ends_at_its_total(dense, tmp_path):
    source, made, _ = dense
    told = []
    build(made, {"source": source}, tmp_path / "draft", check="off", on_progress=told.append)
    total = sum(spec.n_bytes for spec in weights_of(made.steps).values())
    built = [(p.done, p.total) for p in told if p.phase == "build"]
    assert built[-1] == (total, total)
    assert built == sorted(built)


def test_manifest_is_the_same_on_another_machine(dense, tmp_path, monkeypatch):
    source, made, _ = dense
    one = build(made, {"source": source}, tmp_path / "one", check="off")
    monkeypatch.setenv("HOSTNAME", "elsewhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").rename("moved")
    from mtpforge.checkpoint import open_checkpoint

    moved = open_checkpoint("moved")
    two = build(made, {"source": moved}, tmp_path / "two", check="off")
    text = (one.path / manifest.FILE).read_text()
    assert text == (two.path / manifest.FILE).read_text()
    assert str(tmp_path) not in text


class Library:
    """Stands for the process that decodes with a format's library: keeps what the build hands over."""

    def __init__(self, samples, files):
        Library.samples, Library.files = samples, files

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def finish(self, digests):
        Library.digests = dict(digests)
        return CheckResult(1, SHAPE[0] * SHAPE[1], {"some-library": "1.2"})


@pytest.mark.parametrize("action", ["copy", "encode"])
def test_reference_check_gets_the_decoded_values_of_every_drawn_band(tmp_path, monkeypatch, action):
    monkeypatch.setattr(building, "ReferenceCheck", Library)
    parts = stored(MODELOPT, weight(*SHAPE).float())
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    wanted = MODELOPT if action == "copy" else INT4
    step = Step(moves=(move(source, "m", SHAPE, MODELOPT, wanted, action=action),))
    draft = build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="full")
    values = FORMATS["modelopt_nvfp4"].decode(parts, SHAPE, MODELOPT).bfloat16()
    assert Library.files == {"model.safetensors": tmp_path / "source" / "model.safetensors"}
    assert sum(last - first for _, first, last in Library.digests) == SHAPE[0]
    for sample in Library.samples:
        band = values[slice(*sample.rows)].view(torch.uint8).numpy().tobytes()
        assert Library.digests[sample.key] == hashlib.sha256(band).hexdigest()
    assert draft.manifest.body["checks"] == [
        {
            "name": "reference",
            "verdict": "passed",
            "detail": "163,840 values of 1 weights equal as BF16 in some-library 1.2 (full)",
            "fix": "",
        }
    ]


def test_resumed_steps_are_checked_as_well(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "ReferenceCheck", Library)
    parts = {f"{n}.{s}": t for n in "ab" for s, t in stored(MODELOPT, weight(*SHAPE).float()).items()}
    source = checkpoint(tmp_path / "source", {n: t.clone() for n, t in parts.items()})
    steps = [Step(moves=(move(source, n, SHAPE, MODELOPT, INT4),)) for n in "ab"]
    whole = build(plan(source, steps), {"source": source}, tmp_path / "whole", check="full")
    seen = Library.digests
    with monkeypatch.context() as patch:
        interrupt_at(patch, 25, KeyboardInterrupt())
        with pytest.raises(MtpforgeError, match="interrupted") as caught:
            build(plan(source, steps), {"source": source}, tmp_path / "draft", workers=1)
    assert "1 finished steps are kept" in caught.value.why
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="full")
    assert Library.digests == seen
    assert (draft.path / manifest.FILE).read_bytes() == (whole.path / manifest.FILE).read_bytes()
