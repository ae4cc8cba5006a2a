"""Helpers: files, logger, meters, registry, random states, parameters."""

import io
import os
import random
import sys
from contextlib import suppress

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import nn

from dassl import utils
from dassl.utils import (
    AverageMeter,
    Logger,
    MetricMeter,
    Registry,
    UnknownNameError,
    UnreadableImageError,
    atomic_write,
    derive_seed,
    get_random_state,
    seeded_random_state,
    set_random_seed,
    set_random_state,
    setup_logger,
)


def draws():
    return random.random(), np.random.random(), torch.rand(1).item(), random.gauss(0, 1), np.random.normal()


# Files


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "results.json"
    utils.write_json({"a": 1}, path)
    with pytest.raises(TypeError):
        utils.write_json({"a": object()}, path)

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert utils.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["results.json"]


def test_json_makes_its_directory_and_names_a_broken_file(tmp_path):
    path = tmp_path / "deep" / "er" / "x.json"
    utils.write_json([1, "ä"], path)
    assert path.read_text() == '[\n    1,\n    "\\u00e4"\n]'
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not a JSON file"):
        utils.read_json(path)


def test_directories(tmp_path):
    utils.mkdir_if_missing(tmp_path / "a" / "b")
    utils.mkdir_if_missing(tmp_path / "a" / "b")
    utils.mkdir_if_missing("")
    (tmp_path / "file").touch()
    (tmp_path / "a" / ".hidden").touch()
    assert utils.listdir_nohidden(tmp_path / "a") == ["b"]
    assert utils.listdir_nohidden(tmp_path, sort=True) == ["a", "file"]
    for inside in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(NotADirectoryError, match="a file stands in the way"):
            utils.mkdir_if_missing(inside)


def test_check_isfile_warns(tmp_path):
    (tmp_path / "x").touch()
    assert utils.check_isfile(tmp_path / "x")
    with pytest.warns(UserWarning, match="No file found"):
        assert not utils.check_isfile(tmp_path / "y")


def test_list():
    assert utils.tolist_if_not(3) == [3]
    assert utils.tolist_if_not([3]) == [3]


def test_download(tmp_path, capsys):
    source = tmp_path / "source.bin"
    source.write_bytes(b"1234")
    utils.download_url(source.as_uri(), tmp_path / "down" / "copy.bin")
    assert (tmp_path / "down" / "copy.bin").read_bytes() == b"1234"
    assert f'* url="{source.as_uri()}"' in capsys.readouterr().out


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    class Response(io.BytesIO):
        headers = {"Content-Length": "10"}

    monkeypatch.setattr("urllib.request.urlopen", lambda url: Response(b"1234"))
    with pytest.raises(OSError, match="broke off after 4 of 10 bytes"):
        utils.download_url("http://example.org/x", tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_images_are_read_as_rgb(tmp_path):
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    image = utils.read_image(tmp_path / "grey.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (7, 7, 7))
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UnreadableImageError, match=r"text\.png"):
        utils.read_image(tmp_path / "text.png")


# Logger


def test_logger_copies_what_is_printed_and_gives_stdout_back(tmp_path, capsys):
    console = sys.stdout
    logger = setup_logger(str(tmp_path / "out"))
    print("hello")
    assert (tmp_path / "out" / "log.txt").read_text() == "hello\n", "a killed run keeps what it printed"
    assert sys.stdout.isatty() == console.isatty()
    logger.close()
    assert sys.stdout is console
    print("after")
    assert (tmp_path / "out" / "log.txt").read_text() == "hello\n"
    assert capsys.readouterr().out == "hello\nafter\n"


def test_an_existing_log_is_kept(tmp_path):
    (tmp_path / "log.txt").write_text("old")
    for _ in range(2):
        with setup_logger(tmp_path):
            print("new")
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 3
    assert all(name.startswith("log.txt") for name in names)
    assert [(tmp_path / name).read_text() for name in names] == ["old", "new\n", "new\n"]


def test_a_second_logger_ends_the_first(tmp_path):
    console = sys.stdout
    setup_logger(tmp_path / "one")
    second = setup_logger(tmp_path / "two")
    print("x")
    second.close()
    assert sys.stdout is console
    assert (tmp_path / "one" / "log.txt").read_text() == ""
    assert (tmp_path / "two" / "log.txt").read_text() == "x\n"


def test_a_log_file_by_name_and_none(tmp_path):
    with setup_logger(str(tmp_path / "run.log")) as logger:
        assert isinstance(logger, Logger)
    assert os.listdir(tmp_path) == ["run.log"]
    assert setup_logger() is None
    assert setup_logger("") is None


# Meters


def test_average_meter():
    meter = AverageMeter()
    meter.update(torch.tensor(1.0))
    meter.update(4.0, n=3)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (4.0, 3.25, 13.0, 4)
    smooth = AverageMeter(ema=True)
    smooth.update(10.0)
    smooth.update(20.0)
    assert smooth.avg == pytest.approx(2.9)
    meter.reset()
    assert meter.count == 0


def test_metric_meter_prints_as_dassl():
    meter = MetricMeter()
    meter.update({"loss": 1.0, "acc": torch.tensor(50.0)})
    meter.update({"loss": 0.5, "acc": 0})
    meter.update(None)
    assert str(meter) == "loss 0.5000 (0.7500) acc 0.0000 (25.0000)"
    assert meter.averages() == {"loss": 0.75, "acc": 25.0}
    with pytest.raises(TypeError, match="list"):
        meter.update([1])


# Registry


def test_registry():
    registry = Registry("SHAPE")

    @registry.register()
    class Circle:
        pass

    def square():
        pass

    assert registry.register(square) is None
    assert registry.get("Circle") is Circle
    assert registry.registered_names() == ["Circle", "square"]
    assert "square" in registry
    with pytest.raises(KeyError, match="already registered"):
        registry.register(square)
    registry.register(square, force=True)
    with pytest.raises(UnknownNameError) as error:
        registry.get("Circel")
    assert isinstance(error.value, KeyError)
    assert isinstance(error.value, ValueError)
    assert str(error.value) == "[Circel] is not in the SHAPE registry: ['Circle', 'square'] (do you mean [Circle]?)"


def test_availability():
    utils.check_availability("a", ["a"])
    with pytest.raises(ValueError, match=r"do you mean \[adam\]"):
        utils.check_availability("adm", ["sgd", "adam"])
    assert utils.get_most_similar_str_to_a_from_b("adm", []) is None


# Random states


def test_seeding_all_generators():
    set_random_seed(3)
    first = draws()
    assert draws() != first
    set_random_seed(3)
    assert draws() == first


def test_states_survive_a_safe_file(tmp_path):
    set_random_seed(3)
    draws()
    torch.save(get_random_state(), tmp_path / "state.pt")
    expected = [draws() for _ in range(3)]
    set_random_seed(8)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draws() for _ in range(3)] == expected


def test_a_seeded_block_leaves_no_trace():
    set_random_seed(3)
    expected = draws()
    set_random_seed(3)
    with seeded_random_state(5):
        inside = draws()
    with suppress(RuntimeError), seeded_random_state(5):
        assert draws() == inside
        raise RuntimeError
    assert draws() == expected


def test_derived_seeds_depend_on_every_part():
    seeds = {derive_seed("item", seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)}
    assert len(seeds) == 27
    assert derive_seed("item", 1, 23) != derive_seed("item", 12, 3)
    assert derive_seed("item", 1) == 5999938389791233175, "the same on every machine and in every version"
    assert all(0 <= seed < 2**63 for seed in seeds)


# Parameters


def small_net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))


def test_counting():
    net = small_net()
    assert utils.count_num_param(net) == 2 * 9 + 2 + 4 + 15
    assert utils.count_num_param(params=net[2].parameters()) == 15
    assert utils.count_num_param(params=[{"params": net[2].weight}]) == 12
    assert utils.count_num_param(params=torch.optim.SGD(net[2].parameters(), lr=0.1).param_groups) == 15
    with pytest.raises(ValueError, match="needs a model or params"):
        utils.count_num_param()


def test_opening_layers():
    net = small_net()
    utils.open_specified_layers(nn.DataParallel(net), "2")
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2
    assert (net[1].training, net[2].training) == (False, True)
    utils.open_all_layers(net)
    assert all(p.requires_grad for p in net.parameters())
    assert net[1].training
    with pytest.raises(ValueError, match="no layers"):
        utils.open_specified_layers(net, ["3"])


@pytest.mark.parametrize("kind", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initialising(kind):
    net = small_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7.0)
    utils.init_network_weights(net, kind)
    assert net[2].weight.abs().max() < 7
    assert net[2].weight.std() > 0
    assert net[0].bias.abs().max() == 0
    assert torch.equal(net[1].weight, torch.ones(2))
    with pytest.raises(ValueError, match="orthogonal"):
        utils.init_network_weights(net, "zeros")


def test_environment_names_versions(monkeypatch):
    """No program is run for it: many are slow, and some are not everywhere."""
    monkeypatch.setattr("subprocess.Popen", None)
    info = utils.collect_env_info.__wrapped__()
    for version in (torch.__version__, sys.version.split()[0], f"Pillow: {PIL.__version__}"):
        assert version in info
