"""Facts of results.json that are worked out here rather than taken from the run."""

import pytest

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from evaluation.record import describe_decoding, with_data_share
from evaluation.rundir import RunDirError, prepare_run_dir, write_config


@pytest.mark.parametrize(
    ("factor", "text"), [(0.0, "full size"), (1.5, "JPEG at 1, 1/2, 1/4 or 1/8 size, at least 336x336")]
)
def test_the_size_at_which_images_are_decoded_is_stated(factor, text):
    cfg = get_cfg_default()
    cfg.INPUT.JPEG_DRAFT = factor
    assert describe_decoding(DatasetWrapper(cfg, [])) == text


def test_the_share_of_waiting_for_data():
    assert with_data_share({"train": 8.0, "data": 2.0, "test": 1.0})["data_share"] == 0.25
    assert "data_share" not in with_data_share({"test": 1.0})


def test_a_run_goes_on_with_another_cache_but_not_with_another_decoding(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    write_config(cfg)
    cfg.DATALOADER.CACHE_MB = 0
    assert not prepare_run_dir(cfg)
    cfg.INPUT.JPEG_DRAFT = 1.0
    with pytest.raises(RunDirError, match=r"INPUT\.JPEG_DRAFT was 0\.0, now 1\.0"):
        prepare_run_dir(cfg)
