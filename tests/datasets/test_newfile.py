"""New files: whole or not at all, and of two writers at once the first one wins."""

import os
import threading

import pytest

from datasets.splits import write_new_text


def write_at_once(path, texts, monkeypatch):
    """Let every writer see that there is no file yet before any of them writes; what each of them raised."""
    ready = threading.Barrier(len(texts))
    errors = []
    monkeypatch.setattr("datasets.splits.os.path.lexists", lambda _: ready.wait(timeout=10) and False)

    def write(text):
        try:
            write_new_text(str(path), text)
        except FileExistsError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    return errors


def test_of_different_texts_at_once_the_first_stays(tmp_path, monkeypatch):
    path = tmp_path / "selection.json"
    errors = write_at_once(path, ["a" * 9, "b" * 9, "c" * 9], monkeypatch)
    assert len(errors) == 2
    assert path.read_text() in ("a" * 9, "b" * 9, "c" * 9)
    assert os.listdir(tmp_path) == ["selection.json"]


def test_the_same_text_may_come_twice_at_once(tmp_path, monkeypatch):
    path = tmp_path / "selection.json"
    assert write_at_once(path, ["same", "same"], monkeypatch) == []
    assert path.read_text() == "same"


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError("no hard links here")

    monkeypatch.setattr("datasets.splits.os.link", refuse)
    path = tmp_path / "selection.json"
    write_new_text(str(path), "one")
    with pytest.raises(FileExistsError, match="other content"):
        write_new_text(str(path), "two")
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["selection.json"]
