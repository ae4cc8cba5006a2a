"""Files of a repository on huggingface.co: from its client's cache, else downloaded. Needs ``huggingface_hub``."""

from __future__ import annotations

import re
from pathlib import Path

from common.unpickling import reason

HUB_PREFIX = "hf:"


def check_repository(name: str, option: str = "") -> None:
    """Refuse what is no repository's name, USER/REPOSITORY; `option`: where it was given, for the message."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, flags=re.ASCII):
        raise ValueError(f"{option or HUB_PREFIX}{name!r} is no repository of huggingface.co: write USER/REPOSITORY")


def hub_folder(repository: str, *wanted: tuple[str, ...]) -> Path:
    """Folder of Hugging Face's cache with one file of each tuple of ``wanted``, the first that the repository has.

    The cache is looked at first; what is missing there is downloaded, of the same revision. Whether it can be is asked
    once, without the client's retries: without a network the error comes at once.

    Raises:
        ValueError: it is no repository's name.
        FileNotFoundError: without ``huggingface_hub``, or where a file cannot be had; the message says what to do.
    """
    check_repository(repository)
    name = f"{HUB_PREFIX}{repository}"
    try:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} needs the package huggingface_hub ({error}): pip install huggingface_hub, "
            "or give the path of a folder with its files"
        ) from error
    path = revision = None
    for names in wanted:
        path, failure = None, ""
        for file, cached in [(file, True) for file in names] + [(file, False) for file in names]:
            if not cached:
                print(f"Downloading {file} of {name}")
            try:
                if not cached:
                    get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
                path = Path(hf_hub_download(repository, file, revision=revision, local_files_only=cached))
                break
            except Exception as error:  # of the client, of its web library, of the system
                failure = reason(error)
        if path is None:
            raise FileNotFoundError(
                f"{name}: {' or '.join(names)} is not in the cache {constants.HF_HUB_CACHE} and could not be "
                f"downloaded ({failure}). On a machine with network access run `hf download {repository} --local-dir "
                "FOLDER`, and give the folder's path; or copy that machine's cache and set HF_HUB_CACHE to it"
            )
        revision = path.parent.name  # the cache keeps each revision in a folder of its own
    return path.parent
