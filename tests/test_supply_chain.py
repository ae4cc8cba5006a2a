"""What is installed and what is reached: the lock file fits the requirements, and a run opens no connection."""

import re
import socket

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

import train
from tests.test_train import arguments


def requirements(path):
    """Requirements of a file by name; several of one name where they differ between Pythons."""
    lines = [line.split(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


def test_the_lock_satisfies_the_requirements(request):
    wanted = requirements(request.config.rootpath / "requirements.txt")
    locked = requirements(request.config.rootpath / "requirements.lock")
    for requirement in wanted:
        pins = [pin for pin in locked if pin.name.lower() == requirement.name.lower()]
        assert pins, requirement.name
        for pin in pins:
            (exact,) = pin.specifier
            assert exact.operator == "=="
            assert requirement.specifier.contains(exact.version, prereleases=True), f"{pin} for {requirement}"


def test_the_lock_is_of_no_machine(request):
    text = (request.config.rootpath / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?://|file:|--index|--find-links|\+cpu|\+cu\d", text)
    assert all(pin.marker is None or isinstance(pin.marker, Marker) for pin in requirements_of(text))


def requirements_of(text):
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_every_requirement_has_a_lower_bound(request):
    for requirement in requirements(request.config.rootpath / "requirements.txt"):
        assert any(part.operator == ">=" for part in requirement.specifier), requirement.name


def test_a_run_on_bundled_data_opens_no_connection(tmp_path, monkeypatch, request):
    def refuse(*args, **kwargs):
        pytest.fail(f"a connection to {args[1:]}")

    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(train, "collect_env_info", str)  # runs pip and nvidia-smi, which connect to nothing
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert train.main(arguments("CoOp", tmp_path, "OPTIM.MAX_EPOCH", "1")) == 0
