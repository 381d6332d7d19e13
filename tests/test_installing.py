"""Ways to install and release: the wheel, the Containerfile, the workflows. No container, no runner is started."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parents[1]
WORKFLOWS = TOP / ".github" / "workflows"
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
# A tag can be moved, a commit cannot; the tag stands beside it for whoever renews it.
PINNED = re.compile(r"uses: (actions|pypa)/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
OWN = "./.github/workflows/test.yml"


def workflow(name):
    """A workflow; YAML 1.1 reads its `on` as true."""
    body = yaml.safe_load((WORKFLOWS / name).read_text())
    return body | {"on": body.pop(True)}


def commands(name):
    jobs = workflow(name)["jobs"].values()
    return [step["run"] for job in jobs for step in job.get("steps", ()) if "run" in step]


@pytest.mark.parametrize("name", ["test.yml", "release.yml"])
def test_workflow_pins_actions_and_names_no_secret(name):
    text = (WORKFLOWS / name).read_text()
    foreign = [line for line in text.splitlines() if "uses:" in line and OWN not in line]
    assert foreign
    assert [line for line in foreign if not PINNED.search(line)] == []
    assert not re.search(r"secrets\.|password:|api-token|PYPI_TOKEN|pull_request_target|write-all", text)
    assert all("timeout-minutes" in job or job["uses"] == OWN for job in workflow(name)["jobs"].values())


def test_an_action_is_the_same_in_every_workflow():
    text = "".join((WORKFLOWS / name).read_text() for name in ("test.yml", "release.yml"))
    found = set(re.findall(r"uses: (\w+/[\w-]+)@(\w+) #", text))
    assert len({action for action, _ in found}) == len(found)


def test_tests_run_on_both_processors_and_may_only_read():
    body = workflow("test.yml")
    assert body["permissions"] == {"contents": "read"}
    assert body["jobs"]["test"]["strategy"]["matrix"]["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    targets = set(re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    named = [command.removeprefix("make ") for command in commands("test.yml")]
    assert named == ["setup", "lint", "demo", "docs", "test"]
    assert set(named) <= targets


def test_release_is_by_tag_and_by_pypi_s_trust():
    body = workflow("release.yml")
    assert body["on"] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}
    assert body["permissions"] == {}
    assert body["jobs"]["build"]["permissions"] == {"contents": "read"}
    publish = body["jobs"]["publish"]
    assert (publish["environment"], publish["permissions"]) == ("pypi", {"id-token": "write"})
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")


def test_release_publishes_what_was_tested_and_checked():
    jobs = workflow("release.yml")["jobs"]
    assert jobs["publish"]["needs"] == ["test", "build"]
    assert jobs["test"] == {"permissions": {"contents": "read"}, "uses": OWN}
    assert "workflow_call" in workflow("test.yml")["on"]
    steps = [step.get("run", step.get("uses", "")) for step in jobs["build"]["steps"]]
    assert steps[-3:-1] == ["python -m hatchling build -d dist", "python -m twine check --strict dist/*"]
    assert steps[-1].startswith("actions/upload-artifact@")


@pytest.mark.parametrize(("tag", "passes"), [(f"v{PROJECT['version']}", True), ("v99.0.0", False)])
def test_tag_that_is_not_the_version_ends_the_release(tag, passes):
    (check,) = [command for command in commands("release.yml") if "GITHUB_REF_NAME" in command]
    ran = subprocess.run(["sh", "-c", check], cwd=TOP, env={**os.environ, "GITHUB_REF_NAME": tag}, check=False)
    assert (ran.returncode == 0) is passes


def instructions():
    """Instruction and arguments, in order."""
    lines = (TOP / "Containerfile").read_text().replace("\\\n", "").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def test_container_installs_torch_as_make_does_and_is_nobody_s_root():
    found = instructions()
    torch = re.search(r"^TORCH \?= (.+)$", (TOP / "Makefile").read_text(), re.MULTILINE)[1]
    assert found[0] == ("FROM", "docker.io/library/python:3.11-slim")  # an image of both processors
    assert found[1] == ("RUN", f"pip install --no-cache-dir {torch}")
    assert [rest for word, rest in found if word == "USER"] == ["forge"]
    assert [word for word, _ in found][-4:] == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]
    assert not re.search(r"x86_64|amd64|aarch64|arm64", " ".join(rest for _, rest in found))


def test_container_copies_all_that_the_wheel_is_built_of():
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    assert all((TOP / name).exists() for name in copied)
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "schemes", "mtpforge"}
    (install,) = [rest for word, rest in instructions() if word == "RUN" and "constraints" in rest]
    words = shlex.split(install.split("&&")[0])
    assert words == ["pip", "install", "--no-cache-dir", "-c", "constraints.txt", ".[gguf]"]


@pytest.mark.slow
def test_wheel_installs_into_an_environment_of_its_own_and_builds_the_demo(tmp_path):
    """As uv, pipx and the container do; what it depends on is lent by this environment, so that nothing is fetched."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=TOP, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    subprocess.run([python, "-m", "pip", "install", *quiet, wheel], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [tmp_path / "env" / "bin" / "mtpforge", "demo", "-q"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "out/demo\n"
    where = subprocess.run(
        [python, "-c", "import mtpforge; print(mtpforge.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
