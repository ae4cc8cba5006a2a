"""Files of a repository on huggingface.co: from its client's cache, else downloaded. Needs ``huggingface_hub``."""

from __future__ import annotations

from pathlib import Path

from common.unpickling import reason

HUB_PREFIX = "hf:"


def hub_folder(repository: str, *wanted: tuple[str, ...]) -> Path:
    """Folder of Hugging Face's cache with one file of each tuple of ``wanted``, the first that the repository has.

    The cache is looked at first; what is missing there is downloaded, of the same revision.

    Raises:
        FileNotFoundError: without ``huggingface_hub``, or where a file cannot be had; the message says what to do.
    """
    name = f"{HUB_PREFIX}{repository}"
    try:
        from huggingface_hub import constants, hf_hub_download
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
