"""What holds for the project as a whole: files, public names, the wheel, the lengths that `make lint` checks."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mtpforge

TOP = Path(__file__).parents[1]
# Paths of one machine have no place in a project; the words are put together so that this file holds none of them.
MACHINE_PATHS = re.compile(
    "|".join(
        re.escape("/".join(parts))
        for parts in (("", "work", ""), ("", "root", ""), ("", "opt", ""), ("", "tmp", "envs"), ("..", "shared"))
    )
)
MAX_TRACKED_BYTES = 3_000_000  # the largest shard of the tiny model
MAX_WHEEL_BYTES = 10_000_000


def tracked():
    """Files that git knows, or would if they were added."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=TOP,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git work tree")
    return [TOP / name for name in listed.stdout.splitlines() if (TOP / name).is_file()]


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in tracked():
        raw = path.read_bytes()
        if b"\0" not in raw[:4096]:
            lines = raw.decode().splitlines()
            found += [
                f"{path.relative_to(TOP)}:{n}: {line}" for n, line in enumerate(lines, 1) if MACHINE_PATHS.search(line)
            ]
    assert found == []


def test_no_file_is_so_large_that_a_clone_takes_long():
    assert [str(path) for path in tracked() if path.stat().st_size > MAX_TRACKED_BYTES] == []


CALLS = {
    "accept",
    "bench",
    "build",
    "capture",
    "card",
    "delta",
    "demanded_scheme",
    "diff",
    "doctor",
    "dump_scheme",
    "explain_serve",
    "extract",
    "fidelity",
    "graft",
    "inspect",
    "load_scheme",
    "merge",
    "open_checkpoint",
    "plan",
    "prune_plan",
    "push",
    "schemes",
    "serve_command",
    "validate",
    "verify",
    "write_page",
}
RESULTS = {
    "Acceptance",
    "Bench",
    "Checkpoint",
    "Command",
    "Comparison",
    "Draft",
    "Fidelity",
    "Made",
    "MtpforgeError",
    "Plan",
    "Progress",
    "Report",
    "Scheme",
}


def test_public_names_are_the_calls_and_what_they_give():
    assert set(mtpforge.__all__) == CALLS | RESULTS | {"__version__"}
    for name in mtpforge.__all__:
        first = getattr(mtpforge, name)  # importing a submodule of the same name would replace it
        assert first == getattr(mtpforge, name)
        assert callable(first) or name == "__version__"


def test_importing_the_package_brings_no_library():
    code = (
        "import sys; before = set(sys.modules); import mtpforge\n"
        "print({m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True)
    names = set(re.findall(r"'(\w+)'", found.stdout))
    assert names - set(sys.stdlib_module_names) == {"mtpforge"}


def test_package_of_every_folder_has_an_init_file():
    folders = {path.parent for path in (TOP / "mtpforge").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def lengths(folder):
    return subprocess.run(
        [sys.executable, TOP / ".ci" / "lengths.py", folder], capture_output=True, text=True, check=False
    )


def test_lint_accepts_what_is_at_the_limits(tmp_path):
    body = "def f():\n" + "    x = 1\n" * 59
    (tmp_path / "good.py").write_text(body + "y = 1\n" * 340)
    result = lengths(tmp_path)
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "1 files: median 400 lines, longest 400 of 400",
        "1 functions: median 60 lines, longest 60 of 60",
    ]


def test_lint_fails_on_a_long_file_and_names_it(tmp_path):
    (tmp_path / "bad.py").write_text("y = 1\n" * 401)
    result = lengths(tmp_path)
    assert result.returncode == 1
    assert f"too long: {tmp_path / 'bad.py'}: 401 lines" in result.stdout


def test_lint_fails_on_a_long_function_and_names_it(tmp_path):
    (tmp_path / "bad.py").write_text("class C:\n    async def f(self):\n" + "        x = 1\n" * 60)
    result = lengths(tmp_path)
    assert result.returncode == 1
    assert f"too long: {tmp_path / 'bad.py'}:2 f: 61 lines" in result.stdout


@pytest.mark.slow
def test_wheel_carries_schemes_and_the_demo_and_stays_small(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=TOP, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    inside = set(zipfile.ZipFile(wheel).namelist())
    schemes = {f"mtpforge/_schemes/{path.name}" for path in (TOP / "schemes").glob("*.toml")}
    package = {
        str(p.relative_to(TOP)) for p in (TOP / "mtpforge").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert schemes
    assert (schemes | package) - inside == set()
    assert [name for name in inside if name.startswith("tests/")] == []
    assert any(name.endswith("licenses/LICENSE") for name in inside)
