"""The container's files, linted: what they copy, open, mount and run is what the program has."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from raggd.settings import ServingSettings
from test_printed_commands import parse

ROOT = Path(__file__).resolve().parents[1]


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Containerfile, continuation lines joined."""
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines() if line]


def last(name: str) -> str:
    return [value for kind, value in instructions() if kind == name][-1]


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["raggd"])


def test_every_instruction_is_known_and_images_are_named_by_version() -> None:
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE"}
    known |= {"STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {kind for kind, _ in instructions()} == known
    for kind, value in instructions():
        if kind == "FROM":
            assert re.match(r"docker\.io/library/python:3\.\d+-slim( AS \w+)?$", value)


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[0] == "*"
    for kind, value in instructions():
        if kind == "COPY" and not value.startswith("--from"):
            for source in value.split()[:-1]:
                name = source.removeprefix("./")
                assert (ROOT / name).exists(), name
                assert any(fnmatch.fnmatch(name, pattern) for pattern in kept), name


def test_it_runs_as_nobody_in_particular_and_writes_to_its_cache_alone() -> None:
    order = [kind for kind, _ in instructions()]
    assert last("USER") not in {"root", "0"}
    assert "RUN" not in order[order.index("USER") :], "a step after USER may fail for rights"
    mounted = json.loads(last("VOLUME"))
    assert re.search(r"RAGGD_CACHE=(\S+)", last("ENV"))[1] in mounted  # type: ignore[index]
    for folder in mounted:
        assert re.search(rf"install -d -o {last('USER')} .*{folder}", last("RUN"))


def test_the_command_parses_and_the_port_is_the_programs() -> None:
    arguments = json.loads(last("CMD"))
    assert json.loads(last("ENTRYPOINT")) == ["raggd"]
    params = parse(arguments)
    assert str(params["corpus"]) in json.loads(last("VOLUME"))
    assert params["host"] == "0.0.0.0"
    port = ServingSettings().port
    assert last("EXPOSE") == str(port)
    check = last("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python", "-c"]
    assert f"127.0.0.1:{port}/health" in command[2]
    compile(command[2], "health", "exec")


def test_the_extras_are_there() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = re.search(r"\.whl\)\[([\w,]+)\]", last("RUN"))
    assert wanted
    assert set(wanted[1].split(",")) <= set(extras["optional-dependencies"])


def test_the_shell_lines_are_whole() -> None:
    for kind, value in instructions():
        if kind == "RUN":
            ran = subprocess.run(["bash", "-n", "-c", value], capture_output=True, text=True)
            assert ran.returncode == 0, ran.stderr
            assert shlex.split(value)


def test_the_compose_file_fits_the_container(service: dict[str, Any]) -> None:
    mounts = {mount.split(":")[1]: mount.split(":")[2:] for mount in service["volumes"]}
    assert set(mounts) == set(json.loads(last("VOLUME")))
    assert mounts["/documents"] == ["ro"]
    assert [port.rsplit(":", 1)[1] for port in service["ports"]] == [last("EXPOSE")]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["build"]["dockerfile"] == "Containerfile"
    assert not service.get("privileged")
    assert service["cap_drop"] == ["ALL"]
    assert service["environment"]["RAGGD_API_KEYS"] == f"/run/secrets/{service['secrets'][0]}"
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > ServingSettings().timeout_s


@pytest.mark.skipif(
    "RAGGD_BUILD_IMAGE" not in os.environ,
    reason="set RAGGD_BUILD_IMAGE=podman or docker to build the image (it fetches gigabytes)",
)
def test_the_image_builds_and_answers() -> None:
    engine = shutil.which(os.environ["RAGGD_BUILD_IMAGE"])
    assert engine, "RAGGD_BUILD_IMAGE names no engine"
    subprocess.run([engine, "build", "-t", "raggd-test", "-f", "Containerfile", "."], cwd=ROOT)
    ran = subprocess.run(
        [engine, "run", "--rm", "raggd-test", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "raggd" in ran.stdout
