"""Commands for machines: golden texts to be read, conditions that hold, and the engines' own parsers."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import machine_commands
import pytest

import mtpforge
from mtpforge.engines import Serving
from mtpforge.engines.hardware import deployment, machines
from mtpforge.errors import MtpforgeError

GOLDEN = Path(__file__).parents[1] / "golden" / "hardware"
PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
SHOWN = ("target-awq-int4-mtp-ignored", "target-fp8", "target-mxfp4-amd", "target-nvfp4-nvidia")


def flag(command, name):
    return command.argv[command.argv.index(name) + 1]


def made(machine, target="target-bf16", engine="vllm", fork="", serving=None):
    return machine_commands.command(
        engine, machine_commands.target(target), machine_commands.asked(machine, fork), serving
    )


@pytest.mark.parametrize("machine", machines())
def test_commands_are_the_stored_ones(machine):
    """Read them like code: `REWRITE_GOLDEN=1 pytest tests/engines/test_hardware.py` writes them."""
    shown = []
    for fork in ("", *machines()[machine].forks):
        for name in SHOWN:
            words = made(machine, name, fork=fork).argv
            shown += [f"# {name}{fork and f', fork {fork}'}", shlex.join(words), ""]
    path = GOLDEN / f"{machine}.txt"
    if os.environ.get("REWRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(shown))
    assert path.read_text() == "\n".join(shown)


def test_every_flag_has_a_reason_a_source_and_an_engine_of_the_table():
    for machine in machines().values():
        for row in machine.rows:
            assert row["engine"] in mtpforge.engines.ENGINES
            assert row["reason"]
            assert row["source"]
            assert set(row) <= {"engine", "name", "value", "when", "fork", "reason", "source"}
            assert set(row.get("when", {})) <= {"method", "experts", "algo", "family", "ranks", "tp", "follower"}
            assert row.get("fork", next(iter(machine.forks), "")) in {"", *machine.forks}


def test_no_fork_gives_a_flag_that_is_given_without_it():
    """It would stand in the command twice."""
    for machine in machines().values():
        stock = {(row["engine"], row["name"]) for row in machine.rows if not row.get("fork")}
        assert not stock & {(row["engine"], row["name"]) for row in machine.rows if row.get("fork")}


def test_flags_of_a_fork_are_given_to_those_who_name_it_alone():
    stock, forked = made("spark-x4"), made("spark-x4", fork="gb10")
    assert "B12X_MLA_SPARSE" not in stock.argv
    assert "VLLM_USE_B12X_SPARSE_INDEXER=1" not in stock.argv
    assert flag(forked, "--attention-backend") == "B12X_MLA_SPARSE"
    assert "VLLM_USE_B12X_SPARSE_INDEXER=1" in forked.argv[: forked.argv.index("vllm")]
    assert forked.argv[0] == "env"


def test_a_fork_that_reads_the_pattern_is_told_the_layers_with_an_indexer():
    """GLM-5.2: layers 0, 1, 2, 6, 10 ... 74 have one of their own."""
    told = json.loads(flag(made("spark-x4", fork="gb10"), "--hf-overrides"))["index_topk_pattern"]
    assert [at for at, letter in enumerate(told) if letter == "F"] == [0, 1, *range(2, 78, 4)]
    assert len(told) == 78
    assert "--hf-overrides" not in made("spark-x4").argv


def test_a_pattern_that_was_asked_for_stands_over_the_derived_one():
    asked = Serving(4, overrides={"index_topk_pattern": "FS"})
    told = json.loads(flag(made("spark-x4", fork="gb10", serving=asked), "--hf-overrides"))
    assert told["index_topk_pattern"] == "FS"


@pytest.mark.parametrize(
    "index",
    [
        *(b"", b"{}", b"[]", b"no json", b'{"metadata": {"total_size": "many"}}'),
        *(f'{{"metadata": {{"total_size": {stated}}}}}'.encode() for stated in ("1e999", "NaN", "9" * 4000)),
    ],
)
def test_weights_that_no_index_counts_are_taken_to_fit(index):
    served = machine_commands.target("target-bf16", index)
    assert machine_commands.command("vllm", served, machine_commands.asked("h100-x4")).traps == ()


def test_ranks_are_the_machines_unless_another_number_is_asked_for():
    assert flag(made("h200-x8"), "--tensor-parallel-size") == "8"
    assert flag(made("h200-x8", serving=Serving(tensor_parallel=4)), "--tensor-parallel-size") == "4"
    with pytest.raises(MtpforgeError, match="2 ranks cannot be dealt out over the 4 nodes of spark-x4"):
        made("spark-x4", serving=Serving(tensor_parallel=2))


def test_what_is_asked_for_by_option_stays():
    words = made("h200-x8", serving=Serving(8, kv_cache_dtype="bfloat16")).argv
    assert words.count("--kv-cache-dtype") == 1
    assert words[words.index("--kv-cache-dtype") + 1] == "bfloat16"


@pytest.mark.parametrize(
    ("machine", "target", "name", "value"),
    [
        ("b200-x8", "target-nvfp4-nvidia", "--enable-expert-parallel", None),
        ("b200-x8", "target-fp8", "--max-num-seqs", "32"),
        ("gh200-x2", "target-fp8", "--cpu-offload-gb", "280"),
        ("gh200-x2", "target-awq-int4-mtp-ignored", "--cpu-offload-gb", "170"),
        ("h200-x8", "target-int4-int8mix-quanttrio", "--moe-backend", "marlin"),
    ],
)
def test_flags_follow_from_the_target(machine, target, name, value):
    words = made(machine, target).argv
    assert name in words
    assert value is None or words[words.index(name) + 1] == value
    assert name not in made(machine).argv


def test_variables_follow_from_the_target_too():
    assert "VLLM_ROCM_USE_AITER_FP4BMM=0" in made("mi355x-x8", "target-mxfp4-amd").argv
    assert "VLLM_ROCM_USE_AITER_FP4BMM=0" not in made("mi355x-x8", "target-fp8").argv


def test_only_the_first_node_answers_requests():
    target = machine_commands.target("target-bf16")
    serves, other = (
        machine_commands.command("vllm", target, machine_commands.asked("spark-x2", node=n)) for n in (0, 1)
    )
    assert "--headless" not in serves.argv
    assert "--headless" in other.argv
    assert flag(other, "--node-rank") == "1"


def test_weights_that_no_rank_has_room_for_are_said():
    """The stored index counts 400 GB; four H100 hold 320."""
    (trap,) = made("h100-x4").traps
    assert (trap.id, trap.severity) == ("machine-too-small", "warning")
    assert "400 GB" in trap.message
    assert "320 GB" in trap.message
    assert not made("h100-x8").traps
    assert [trap.id for trap in made("gh200-x2").traps] == ["machine-note"]  # experts in the memory of the CPUs


def test_flags_that_need_all_ranks_or_one_family_are_left_out_elsewhere():
    """vLLM 0.33: tp must be divisible by dcp (config/parallel.py); without MLA dcp is bound by key and value heads."""
    assert flag(made("rtx-pro-6000-x4"), "--decode-context-parallel-size") == "4"
    assert "--decode-context-parallel-size" not in made("rtx-pro-6000-x4", serving=Serving(2)).argv
    words = made("rtx-pro-6000-x4", "target-glm-4.5", fork="b12x").argv
    assert not {"--decode-context-parallel-size", "--max-model-len", "--attention-backend"} & set(words)


def test_room_is_that_of_the_ranks_in_use():
    (trap,) = made("h200-x8", serving=Serving(2)).traps
    assert "282 GB, on 2 of its ranks" in trap.message


@pytest.mark.parametrize("engine", ["sglang", "both"])
def test_a_fork_serves_its_own_engine_alone(engine):
    with pytest.raises(MtpforgeError, match="serves nothing for") as refused:
        made("spark-x4", engine=engine, fork="gb10")
    assert "`--engine vllm`" in refused.value.fix


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        (("spark", "", 0, ""), "--hardware"),
        (("h200-x8", "b12x", 0, ""), "--fork"),
        (("h200-x8", "", 1, ""), "--node-rank"),
        (("spark-x4", "", 0, ""), "--head-node"),
        (("spark-x4", "", 4, "n0"), "--node-rank"),
        (("h200-x8", "", 0, "n0"), "--head-node"),
        (("", "b12x", 0, ""), "--fork"),
        (("", "", 1, ""), "--node-rank"),
    ],
)
def test_what_no_machine_gives_a_meaning_is_refused(asked, option):
    with pytest.raises(MtpforgeError) as refused:
        mtpforge.engines.hardware.machine_of(deployment(*asked))
    assert (refused.value.code, refused.value.where) == (2, f"option `{option}`")


@pytest.mark.parametrize("typed", ["h200", "h200-x2"])
def test_machine_of_another_number_of_gpus_is_answered_with_those_that_are_known(typed):
    with pytest.raises(MtpforgeError) as refused:
        mtpforge.engines.hardware.machine_of(deployment(typed, "", 0, ""))
    assert refused.value.fix == "did you mean `--hardware h200-x4` or `--hardware h200-x8`?"


@pytest.mark.parametrize(("typed", "meant"), [("h200x8", "h200-x8"), ("H200-x8", "h200-x8"), ("h20-x8", "h200-x8")])
def test_machine_that_is_spelled_otherwise_is_answered_with_the_one_that_is_meant(typed, meant):
    with pytest.raises(MtpforgeError) as refused:
        mtpforge.engines.hardware.machine_of(deployment(typed, "", 0, ""))
    assert refused.value.fix == f"did you mean `--hardware {meant}`?"


def test_node_that_is_not_there_is_answered_with_those_that_are():
    for name, fix in (("h200-x8", "leave `--node-rank` out"), ("spark-x4", "`--node-rank` from 0 to 3")):
        with pytest.raises(MtpforgeError) as refused:
            mtpforge.engines.hardware.machine_of(deployment(name, "", 5, "head"))
        assert refused.value.fix == fix


@pytest.mark.engine
@pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
def test_vllms_own_parser_takes_every_command():
    asked = [command.argv[command.argv.index("vllm") + 2 :] for _, _, command in machine_commands.commands("vllm")]
    assert len(asked) > 200
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("vllm_parser.py"))],
        input=json.dumps(asked),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert [said for said in answers if said] == []
    assert len(answers) == len(asked) + 1  # the last is a flag that vLLM does not know: it must be refused
