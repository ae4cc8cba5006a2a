"""Facts of results.json that are worked out here rather than taken from the run."""

import pytest

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from results.rundir import RunDirError, begin_run, prepare_run_dir
from results.schema import dataset_label, describe_decoding, overrides_of


@pytest.mark.parametrize(
    ("factor", "text"), [(0.0, "full size"), (1.5, "JPEG at 1, 1/2, 1/4 or 1/8 size, at least 336x336")]
)
def test_the_size_at_which_images_are_decoded_is_stated(factor, text):
    cfg = get_cfg_default()
    cfg.INPUT.JPEG_DRAFT = factor
    assert describe_decoding(DatasetWrapper(cfg, [])) == text


def test_a_run_goes_on_with_another_cache_but_not_with_another_decoding(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    begin_run(cfg)
    cfg.DATALOADER.CACHE_MB = 0
    assert not prepare_run_dir(cfg)
    cfg.INPUT.JPEG_DRAFT = 1.0
    with pytest.raises(RunDirError, match=r"INPUT\.JPEG_DRAFT was 0\.0, now 1\.0"):
        prepare_run_dir(cfg)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"NAME": "folder", "PATH": "x/birds"}, "birds"),
        ({"NAME": "Csv", "PATH": "x/birds.CSV"}, "birds"),
        ({"NAME": "csv", "PATH": "x/birds.csv", "LABEL": "all-birds"}, "all-birds"),
        ({"NAME": "folder", "PATH": "birds of\x1b[31m prey"}, "birds_of__31m_prey"),
        ({"NAME": "folder", "PATH": "", "ROOT": "/data/birds"}, "birds"),
        ({"NAME": "folder", "PATH": "/data/x/.."}, "data"),
        ({"NAME": "folder", "PATH": "eurosat"}, "folder_eurosat"),
        ({"NAME": "folder", "PATH": "digits"}, "folder_digits"),
        ({"NAME": "folder", "PATH": "___"}, "folder"),
        ({"NAME": "EuroSAT"}, "EuroSAT"),
    ],
)
def test_the_name_of_a_data_set(settings, label):
    assert dataset_label(settings) == label


@pytest.mark.parametrize("label", ["a/b", "..", ".x", "a b", "a\x1b", "eurosat", "x" * 81])
def test_a_label_that_cannot_be_a_folder_is_refused(label):
    with pytest.raises(ValueError, match="DATASET.LABEL"):
        dataset_label({"NAME": "folder", "PATH": "x", "LABEL": label})


def test_images_that_are_turned_upright_are_stated():
    cfg = get_cfg_default()
    cfg.INPUT.EXIF_ORIENTATION = True
    assert describe_decoding(DatasetWrapper(cfg, [])) == "full size, turned upright by EXIF"


@pytest.mark.parametrize(
    ("pairs", "changed"),
    [
        (["OPTIM.MAX_EPOCH", "3"], {"OPTIM.MAX_EPOCH": 3}),
        (["INPUT.SIZE", "(32, 32)"], {"INPUT.SIZE": [32, 32]}),
        (["OPTIM.MAX_EPOCH", "10"], {}),  # as it was
        (["SEED", "3", "OUTPUT_DIR", "x", "RESUME", "x", "DATASET.ROOT", "x", "USE_CUDA", "False"], {}),
        (["TRAINER.NAME", "CoOp", "MODEL.BACKBONE.NAME", "RN50"], {}),  # keys of the record
        (["DATASET.NUM_SHOTS", "4", "TEST.FINAL_MODEL", "best_val"], {}),  # of the protocol
        (["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TEST.BATCH_SIZE", "8", "TRAIN.PRINT_FREQ", "5"], {}),
    ],
)
def test_only_what_decides_numbers_counts_as_changed(pairs, changed):
    cfg = get_cfg_default()
    cfg.merge_from_list(pairs)
    assert overrides_of(cfg, get_cfg_default()) == changed
