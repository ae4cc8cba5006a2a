"""Checkpoints in which one value is another: every command that reads one refuses it in a line, or takes it."""

import itertools

import pytest
import torch

import predict
import train
from prompting.checkpoint import main
from tests.fuzz.mutated import mutated
from tests.test_train import arguments
from tests.trainers.small_runs import data_root

COMMANDS = {
    "show": lambda run, file, new: main(["show", str(file)]),
    "convert": lambda run, file, new: main(["convert", str(file), str(new / "new.pth"), "--trainer", "BMIP"]),
    "predict": lambda run, file, new: predict.main(["--model-dir", str(run), SEVEN, "--device", "cpu"]),
}
SEVEN = "assets/digits/images/digit_seven/0007.png"


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """The folder of a run of BMIP, and its checkpoint's fields that readers use, with two of the tensors."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(train, "collect_env_info", str)
        options = ("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "TEST.FINAL_MODEL", "last_step")
        assert train.main(arguments("BMIP", folder, *options, "TRAIN.PATIENCE", "0", root=data_root())) == 0
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mutated_checkpoint_ends_no_command_with_a_traceback(run, command, tmp_path, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    file = run / "prompt_learner" / "model.pth.tar-1"
    whole = file.read_bytes()
    content = torch.load(file, weights_only=True)
    used = {key: value for key, value in content.items() if key not in ("optimizer", "scheduler")}
    statuses = set()
    every = 1 if command == "show" else 7
    try:
        for what, odd in itertools.islice(mutated(used), 0, None, every):
            torch.save(odd, file)
            statuses.add(status := COMMANDS[command](run, file, tmp_path))
            out, err = capsys.readouterr()
            assert status in (0, 1, 2), what
            assert "Traceback" not in err, what
            assert "\x1b" not in out + err, what
            assert status == 0 or err.splitlines()[-1].startswith("error: "), what
            (tmp_path / "new.pth").unlink(missing_ok=True)
    finally:
        file.write_bytes(whole)
    assert statuses & {1, 2}
