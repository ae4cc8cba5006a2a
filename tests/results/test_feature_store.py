"""What the store keeps of image features, in memory and on disk, and what it makes of files that are not as written."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch

from prompting.weights import tensors_digest
from results.features import KEY_BYTES, FeatureStore, bound_size, digest, forget_all, image_keys

GIB = 2**30


@pytest.fixture(autouse=True)
def empty_memory():
    forget_all()
    yield
    forget_all()


def keys_of(*numbers):
    return [bytes([number]) * KEY_BYTES for number in numbers]


def features_of(*numbers):
    return torch.tensor([[number, number + 0.5, 1e-7 * number] for number in numbers], dtype=torch.float32)


def store_in(folder, context="c", max_bytes=GIB):
    return FeatureStore(digest(context), folder, max_bytes)


def only_file(folder):
    (path,) = folder.rglob("*.npz")
    return path


def test_another_process_finds_the_very_numbers(tmp_path):
    store_in(tmp_path).add(keys_of(1, 2, 3), features_of(1, 2, 3))
    forget_all()
    found = store_in(tmp_path).find(keys_of(3, 1, 9))
    assert list(found) == keys_of(3, 1)
    assert torch.equal(torch.stack(list(found.values())), features_of(3, 1))


def test_without_a_folder_memory_serves_this_process():
    store_in(None).add(keys_of(1), features_of(1))
    assert torch.equal(store_in(None).find(keys_of(1))[keys_of(1)[0]], features_of(1)[0])
    assert store_in(None, "another context").find(keys_of(1)) == {}


def test_writers_add_to_each_other(tmp_path):
    """Two processes know nothing of each other's images; both write, a third finds all."""
    for numbers in ((1, 2), (2, 3), (1, 2)):
        forget_all()
        store_in(tmp_path).add(keys_of(*numbers), features_of(*numbers))
    forget_all()
    found = store_in(tmp_path).find(keys_of(1, 2, 3))
    assert torch.equal(torch.stack([found[key] for key in keys_of(1, 2, 3)]), features_of(1, 2, 3))
    assert len(list(tmp_path.rglob("*"))) == 3  # a folder and two files, nothing half written


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_a_pickle(path):
    np.savez(path, images=np.array([print], dtype=object), features=np.zeros((1, 3)), context=np.zeros(1))


def write_wrong_shapes(path):
    context = np.frombuffer(digest("c").encode(), np.uint8)
    np.savez(path, context=context, images=np.zeros((2, KEY_BYTES), np.uint8), features=np.zeros((3, 3), np.float32))


def write_other_context(path):
    forget_all()
    store_in(path.parents[1], "other").add(keys_of(1, 2), features_of(5, 6))
    (other,) = (path.parents[1] / digest("other")).iterdir()
    os.replace(other, path)


def write_compressed_zeros(path):
    context = np.frombuffer(digest("c").encode(), np.uint8)
    features = np.zeros((4, 2**20), np.float32)
    np.savez_compressed(path, context=context, images=np.zeros((4, KEY_BYTES), np.uint8), features=features)


def ask_for_a_later_zip(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 211  # version 21.1
    path.write_bytes(content)


def write_broken_header(path):
    """Brackets that nothing closes: found by the fuzzer."""
    header = b"{'shape': (((\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("context.npy", np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header)


def write_vast_header(path):
    """An array of 4 TB, by what its header says."""
    vast = io.BytesIO()
    np.lib.format.write_array_header_1_0(vast, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("context", "images", "features"):
            archive.writestr(f"{name}.npy", vast.getvalue())


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "empty": lambda path: path.write_bytes(b""),
    "a flipped bit": flip_a_bit,
    "no archive": lambda path: path.write_text("not an archive"),
    "a pickle": write_a_pickle,
    "shapes that do not fit": write_wrong_shapes,
    "a later zip format": ask_for_a_later_zip,
    "a header that is no Python": write_broken_header,
    "of another context": write_other_context,
    "compressed": write_compressed_zeros,
    "a header that states terabytes": write_vast_header,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_said_and_removed(damage, tmp_path, capsys):
    store_in(tmp_path).add(keys_of(1, 2), features_of(1, 2))
    path = only_file(tmp_path)
    DAMAGE[damage](path)
    forget_all()
    assert store_in(tmp_path).find(keys_of(1, 2)) == {}
    assert f"{path} is damaged" in capsys.readouterr().out
    assert not path.exists()


def test_the_folder_stays_within_its_bound(tmp_path):
    mine = tmp_path / "notes.npz"
    mine.write_bytes(b"x" * 5000)
    for number in range(5):
        store_in(tmp_path, f"context {number}").add(keys_of(number), features_of(number))
        os.utime(next((tmp_path / digest(f"context {number}")).iterdir()), (number, number))
    size = next(tmp_path.rglob("*/*.npz")).stat().st_size
    bound_size(tmp_path, 2 * size)
    left = {path.parent.name for path in tmp_path.rglob("*/*.npz")}
    assert left == {digest("context 3"), digest("context 4")}  # those used last
    assert mine.exists()  # nothing but its own files goes


def test_memory_stays_within_its_bound():
    row = features_of(1).numel() * 4
    for context in "abc":
        store_in(None, context, max_bytes=2 * row).add(keys_of(1), features_of(1))
    assert [bool(store_in(None, context).find(keys_of(1))) for context in "abc"] == [False, True, True]


def test_a_full_disk_does_not_end_the_run(tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    store_in(tmp_path).add(keys_of(1), features_of(1))
    assert "No space left" in capsys.readouterr().out
    assert list(store_in(tmp_path).find(keys_of(1))) == keys_of(1)
    assert not list(tmp_path.rglob("*.*"))


def test_a_file_is_known_by_path_size_and_time(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    ((key,), (settled,)) = image_keys([str(path)])
    assert settled
    assert image_keys([os.path.relpath(path)])[0] == [key]
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert image_keys([str(path)])[0] != [key]
    path.write_bytes(b"three")
    os.utime(path, ns=(10**18, 10**18))
    assert image_keys([str(path)])[0] != [key]
    path.write_bytes(b"one")
    assert image_keys([str(path)])[1] == [False]  # written a moment ago: it may change again within a clock's tick


def test_weights_are_told_apart_by_name_type_shape_and_value():
    tensors = {"a": torch.zeros(4), "b": torch.ones(())}
    others = [
        {"a": torch.zeros(4), "c": torch.ones(())},
        {"a": torch.zeros(4, dtype=torch.bfloat16), "b": torch.ones(())},
        {"a": torch.zeros(2, 2), "b": torch.ones(())},
        {"a": torch.tensor([0, 0, 0, 1e-30]), "b": torch.ones(())},
    ]
    assert len({tensors_digest(t) for t in [tensors, *others]}) == 5
    assert tensors_digest(dict(reversed(tensors.items()))) == tensors_digest(tensors)
