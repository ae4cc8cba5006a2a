"""A folder that a test has to itself."""

from contextlib import contextmanager

from common.files import RUN_LOCK, FolderLock


@contextmanager
def locked(folder):
    lock = FolderLock(folder / RUN_LOCK)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
