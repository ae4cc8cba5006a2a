"""Every wrong input that the entry points are tried with: the command, and what its one line of error must say.

`{tmp}` in a command is the case's own folder, in which the function `make_files` has written the files that are named
here; `{run}` is a finished run. Each message names the file or the key, and the cure.
"""

import json
import struct
import zlib
from itertools import pairwise
from pathlib import Path

B = ("--backbone", "bundled:tiny_clip")
SEVEN = "assets/digits/images/digit_seven/0007.png"
SWEEP = ("--trainers", "BMIP", "--datasets", "digits", "--seeds", "1")
OWN_DATA = ("--trainers", "BMIP", "--seeds", "1", "--root", "{tmp}", "--datasets")

# Added to a train.py command for BMIP on the digits.
TRAIN = {
    "unknown trainer": (["--trainer", "BMPI"], r"BMPI.*BMIP"),
    "no trainer": (["TRAINER.NAME", "None"], r"None.*TRAINER registry.*BMIP"),
    "unknown data set": (["DATASET.NAME", "Digit"], r"DATASET.NAME.*Digit.*did you mean Digits"),
    "no data set": (["DATASET.NAME", ""], r"DATASET.NAME '': choose one of.*Digits"),
    "unknown backbone": (["--backbone", "ViT-B/61"], r"ViT-B/61.*did you mean"),
    "backbone is a folder": (["MODEL.BACKBONE.NAME", "{tmp}"], r"neither model.safetensors nor pytorch_model.bin"),
    "backbone file is text": (["MODEL.BACKBONE.NAME", "{tmp}/text.pt"], r"text.pt.*fetch it again"),
    "backbone file is hostile": (["MODEL.BACKBONE.NAME", "{tmp}/evil.pt"], r"evil.pt"),
    "backbone of no repository": (["--backbone", "hf:"], r"hf:'' is no repository.*write USER/REPOSITORY"),
    "unknown key": (["TRAINER.BMIP.N_CTXX", "2"], r"TRAINER.BMIP.N_CTXX.*TRAINER.BMIP.N_CTX"),
    "key of another section": (["OPTIM.PATIENCE", "2"], r"OPTIM.PATIENCE.*TRAIN.PATIENCE"),
    "key without a value": (["OPTIM.LR"], r"pairs KEY VALUE.*OPTIM.LR"),
    "unknown class split": (["TEST.CLASS_SPLITS", "('base', 'novel')"], r"novel.*base, new, all"),
    "class split twice": (["TEST.CLASS_SPLITS", "('base', 'base')"], r"base.*more than once.*CLASS_SPLITS"),
    "unknown subsample": (["DATASET.SUBSAMPLE_CLASSES", "novel"], r"SUBSAMPLE_CLASSES.*novel.*all, base, new"),
    "data root missing": (["--root", "nowhere"], r"data root .*nowhere does not exist"),
    "data root is a file": (["--root", "{tmp}/text.pt"], r"data root .*text.pt does not exist"),
    "data root one level off": (["--root", "assets/digits"], r"pass --root .*assets"),
    "too many context tokens": (["TRAINER.BMIP.N_CTX", "80"], r"80|77"),
    "context longer than the text tower": (["TRAINER.BMIP.CTX_INIT", "a photo " * 60], r"125 tokens.*shorter CTX_INIT"),
    "number in words": (["TRAINER.BMIP.N_CTX", "two"], r"TRAINER.BMIP.N_CTX wants int"),
    "prompt depth above the tower": (["TRAINER.BMIP.PROMPT_DEPTH", "5"], r"PROMPT_DEPTH is 5.*1 to 4 layers"),
    "prompt depth zero": (["TRAINER.BMIP.PROMPT_DEPTH", "0"], r"PROMPT_DEPTH is 0.*1 to 4 layers"),
    "unknown gate": (["TRAINER.BMIP.GATE", "soft"], r"GATE 'soft'.*attention, official"),
    "unknown aggregator": (["TRAINER.BMIP.AGGREGATOR", "max"], r"AGGREGATOR 'max'.*gate, add"),
    "unknown precision": (["TRAINER.BMIP.PREC", "fp8"], r"PREC 'fp8'.*fp32, fp16, bf16, amp"),
    "image size of another backbone": (["INPUT.SIZE", "(224, 224)"], r"INPUT.SIZE is \(224, 224\).*48x48"),
    "image size with one side": (["INPUT.SIZE", "(48,)"], r"INPUT.SIZE.*\(height, width\)"),
    "two colours": (["INPUT.PIXEL_MEAN", "[0.5, 0.5]"], r"PIXEL_MEAN.*three numbers"),
    "deviation zero": (["INPUT.PIXEL_STD", "[0.0, 1.0, 1.0]"], r"PIXEL_STD.*above 0"),
    "unknown interpolation": (["INPUT.INTERPOLATION", "bicubicc"], r"INPUT.INTERPOLATION.*did you mean bicubic"),
    "unknown transform": (["INPUT.TRANSFORMS", "('random_flipp',)"], r"INPUT.TRANSFORMS.*did you mean random_flip\?"),
    "transform for the loader only": (
        ["DATALOADER.DEVICE_TRANSFORM", "True", "INPUT.TRANSFORMS", "('randaugment', 'normalize')"],
        r"INPUT.TRANSFORMS is \('randaugment', 'normalize'\).*or set DATALOADER.DEVICE_TRANSFORM False",
    ),
    "no such device": (["--device", "cuda:99"], r"--device cuda:99.*use --device cpu"),
    "graph without CUDA": (
        ["TRAIN.CUDA_GRAPH", "True"],
        r"TRAIN.CUDA_GRAPH on needs a CUDA device.*set it to auto or off",
    ),
    "not a device": (["--device", "gpu"], r"--device 'gpu'.*use cpu"),
    "wrong type": (["OPTIM.MAX_EPOCH", "many"], r"OPTIM.MAX_EPOCH wants int"),
    "no epoch": (["OPTIM.MAX_EPOCH", "0"], r"OPTIM.MAX_EPOCH is 0.*at least 1"),
    "negative learning rate": (["OPTIM.LR", "-0.1"], r"OPTIM.LR is -0.1.*above 0"),
    "infinite learning rate": (["OPTIM.LR", "1e999"], r"OPTIM.LR is inf.*above 0"),
    "unknown optimiser": (["OPTIM.NAME", "sdg"], r"OPTIM.NAME.*did you mean sgd"),
    "unknown schedule": (["OPTIM.LR_SCHEDULER", "cosin"], r"OPTIM.LR_SCHEDULER.*did you mean cosine"),
    "negative warm-up": (["OPTIM.WARMUP_EPOCH", "-3"], r"OPTIM.WARMUP_EPOCH is -3.*at least -1"),
    "unknown warm-up": (["OPTIM.WARMUP_TYPE", "exp"], r"OPTIM.WARMUP_TYPE.*linear, constant"),
    "no batch": (["DATALOADER.TRAIN_X.BATCH_SIZE", "0"], r"TRAIN_X.BATCH_SIZE is 0.*at least 1"),
    "negative test batch": (["DATALOADER.TEST.BATCH_SIZE", "-1"], r"TEST.BATCH_SIZE is -1.*at least 1"),
    "negative workers": (["DATALOADER.NUM_WORKERS", "-1"], r"NUM_WORKERS is -1.*at least 0"),
    "half a worker": (["DATALOADER.NUM_WORKERS", "1.5"], r"NUM_WORKERS wants int"),
    "unknown sampler": (["DATALOADER.TRAIN_X.SAMPLER", "Random"], r"SAMPLER is .Random.: did you mean RandomSampler"),
    "views that the method lacks": (["DATALOADER.K_TRANSFORMS", "2"], r"K_TRANSFORMS is 2.*set it to 1"),
    "log line every 0 batches": (["TRAIN.PRINT_FREQ", "0"], r"PRINT_FREQ is 0.*at least 1"),
    "unknown evaluator": (["TEST.EVALUATOR", "Classif"], r"TEST.EVALUATOR.*did you mean Classification"),
    "unknown final model": (["TEST.FINAL_MODEL", "best"], r"TEST.FINAL_MODEL.*best_val"),
    "patience without validation": (["TEST.FINAL_MODEL", "last_step"], r"PATIENCE.*best_val"),
    "unknown tracker": (["TRAIN.TRACKERS", "('mlflow',)"], r"mlflow.*TRAIN.TRACKERS.*tensorboard"),
    "negative shots": (["DATASET.NUM_SHOTS", "-5"], r"NUM_SHOTS is -5.*at least -1"),
    "no such split": (["DATASET.SPLIT_FILE", "none.json"], r"none.json does not exist.*make-split"),
    "no such selection": (["DATASET.SELECTION", "none.json"], r"DATASET.SELECTION.*none.json does not exist"),
    "template without a place": (["DATASET.TEMPLATE", "a photo"], r"DATASET.TEMPLATE.*one \{\}"),
    "template with a named place": (["DATASET.TEMPLATE", "a photo of {x} {}"], r"DATASET.TEMPLATE.*exactly one \{\}"),
    "template that opens": (["DATASET.TEMPLATE", "a photo of { {}"], r"DATASET.TEMPLATE.*no other brace"),
    "label that leaves the folder": (["DATASET.LABEL", "../x"], r"DATASET.LABEL is '../x'.*letters, digits"),
    "domains of data without": (["--source-domains", "art"], r"SOURCE_DOMAINS.*no domains: leave it out"),
    "seed too large": (["--seed", str(2**40)], r"--seed.*at most 4294967295"),
    "seed in words": (["--seed", "one"], r"--seed: invalid int value: 'one'"),
    "huge seed": (["--seed", str(10**30)], r"SEED \(--seed\) is 1000.*at most 4294967295"),
    "huge number of seeds": (["--seeds", str(10**30), "--root", "assets"], r"--seeds 1000.*0 to 4294967295"),
    "no learning rate": (["OPTIM.LR", "None"], r"OPTIM.LR is None.*above 0"),
    "no number of epochs": (["OPTIM.MAX_EPOCH", "None"], r"OPTIM.MAX_EPOCH is None.*at least 1"),
    "no class splits": (["TEST.CLASS_SPLITS", "None"], r"TEST.CLASS_SPLITS is None.*a list"),
    "no trackers": (["TRAIN.TRACKERS", "None"], r"TRAIN.TRACKERS is None.*a list"),
    "number of epochs as an expression": (["OPTIM.MAX_EPOCH", "10**30"], r"OPTIM.MAX_EPOCH wants int.*10\*\*30"),
    "epochs without end": (["OPTIM.MAX_EPOCH", str(10**30)], r"OPTIM.MAX_EPOCH is 1000.*at most 1000000"),
    "rate that no float holds": (["OPTIM.LR", str(10**400)], r"OPTIM.LR is 1000.*no float"),
    "crop of two images": (["INPUT.RRCROP_SCALE", "(2, 1)"], r"INPUT.RRCROP_SCALE is \(2, 1\).*at most 1"),
    "image of a terabyte": (["INPUT.SIZE", "(1000000, 1000000)"], r"INPUT.SIZE.*at most 4096"),
    "steps in words": (["OPTIM.STEPSIZE", "('a',)"], r"OPTIM.STEPSIZE is \('a',\).*a whole number"),
    "a billion workers": (["DATALOADER.NUM_WORKERS", str(10**9)], r"NUM_WORKERS is 1000000000.*at most 1024"),
    "images without a transform": (["INPUT.NO_TRANSFORM", "True"], r"INPUT.NO_TRANSFORM True.*set it to False"),
    "section instead of a key": (["OPTIM", "sgd"], r"OPTIM is a section with the options.*LR"),
    "weights to test of a run that trains": (["--model-dir", "{run}"], r"--model-dir and --load-epoch.*--eval-only"),
    "epoch of a run that trains": (["--load-epoch", "1"], r"--model-dir and --load-epoch.*--eval-only"),
    "epoch before the first": (["--eval-only", "--model-dir", "{run}", "--load-epoch", "-5"], r"--load-epoch is -5"),
    "unknown domains": (["--target-domains", "art", "photo"], r"TARGET_DOMAINS.*no domains"),
    "unknown training transforms": (
        ["--transforms", "random_flipp"],
        r"INPUT.TRANSFORMS \(--transforms\).*random_flip",
    ),
    "config file without a name": (["--config-file", ""], r"--config-file: give the name of a file"),
    "config file is a folder": (["--config-file", "configs"], r"no config file at configs"),
    "config file missing": (["--config-file", "configs/none.yaml"], r"no config file at configs/none.yaml"),
    "config is Python": (["--config-file", "{tmp}/code.py"], r"code.py: expected the extension .yaml"),
    "config runs code": (["--config-file", "{tmp}/object.yaml"], r"object.yaml.*line 1"),
    "config grows": (["--config-file", "{tmp}/bomb.yaml"], r"bomb.yaml.*alias \*a: write the value out"),
    "config holds itself": (["--config-file", "{tmp}/cycle.yaml"], r"cycle.yaml.*alias"),
    "config is deep": (["--config-file", "{tmp}/deep.yaml"], r"deep.yaml.*32 levels"),
    "config is large": (["--config-file", "{tmp}/large.yaml"], r"large.yaml.*1,048,576 at most"),
    "key twice in a config": (["--config-file", "{tmp}/twice.yaml"], r"twice.yaml.*'LR' a second time.*line 3"),
    "config is a list": (["--dataset-config-file", "{tmp}/list.yaml"], r"list.yaml: expected sections and keys"),
    "section is a number": (["--config-file", "{tmp}/section.yaml"], r"section.yaml: OPTIM is a section"),
    "deep option": (["OPTIM.LR", "-" * 5000 + "1"], r"option OPTIM.LR.*nested too deeply"),
    "output is below a file": (["--output-dir", "{tmp}/text.pt/run"], r"cannot write.*choose another --output-dir"),
    "no checkpoint": (["--eval-only", "--model-dir", "assets"], r"Model not found at .assets.*give the OUTPUT_DIR"),
    "unknown adaptation": (["--test-time", "foo"], r"TEST.ADAPTATION \(--test-time\) 'foo': choose one of '', tpt"),
    "no view kept": (["TPT.KEPT_SHARE", "0.0"], r"TPT.KEPT_SHARE is 0.0.*at least 1e-06"),
    "evaluation of nothing": (["--eval-only"], r"--eval-only of BMIP.*--model-dir"),
    "checkpoint of another method": (["--eval-only", "--model-dir", "{run}"], r"was trained with CoOp, not BMIP"),
    "epoch that is not kept": (["--eval-only", "--model-dir", "{run}", "--load-epoch", "7"], r"epochs there: 1"),
    "initial weights missing": (["MODEL.INIT_WEIGHTS", "none.pth"], r"none.pth"),
    "resume from nowhere": (["--resume", "nowhere"], r"nowhere"),
    "own table missing": (["DATASET.NAME", "csv", "DATASET.PATH", "none.csv"], r"none.csv.*DATASET.PATH"),
}

PREDICT = {
    "image missing": (["a.png"], r"a.png does not exist"),
    "nothing to load": ([SEVEN], r"give --model-dir, or --backbone together with --classes"),
    "not a run": ([SEVEN, "--model-dir", "assets"], r"has no config.yaml"),
    "run with half a config": ([SEVEN, "--model-dir", "{tmp}/half"], r"half/config.yaml.*lacks DATALOADER"),
    "run with an odd config": ([SEVEN, "--model-dir", "{tmp}/odd"], r"INPUT.PIXEL_MEAN is None.*three numbers"),
    "folder without images": (["configs", *B, "--classes", "cat"], r"configs holds no image"),
    "empty class list": ([SEVEN, *B, "--classes", " , "], r"no class name in --classes"),
    "class file missing": ([SEVEN, *B, "--classes-file", "none.txt"], r"none.txt"),
    "class file in another encoding": ([SEVEN, *B, "--classes-file", "{tmp}/latin.txt"], r"latin.txt.*UTF-8"),
    "run and backbone": ([SEVEN, "--model-dir", "{run}", *B], r"--model-dir or --backbone, not both"),
    "template of a run": ([SEVEN, "--model-dir", "{run}", "--template", "a {}."], r"--template is for.* --backbone"),
    "epoch of a backbone": ([SEVEN, *B, "--classes", "cat", "--load-epoch", "1"], r"--load-epoch is for.* --model-dir"),
    "both class options": ([SEVEN, "--classes", "cat", "--classes-file", "x"], r"not both"),
    "unknown backbone": ([SEVEN, "--backbone", "bundled:none", "--classes", "cat"], r"bundled:none|tiny_clip"),
    "bad template": ([SEVEN, *B, "--classes", "cat", "--template", "cat"], r"'cat'.*exactly one \{\}"),
    "template with another place": ([SEVEN, *B, "--classes", "a,b", "--template", "{} {:d}"], r"exactly one \{\}"),
    "two names for one prompt": ([SEVEN, *B, "--classes", "polar_bear,Polar bear"], r"give the same prompt.*rename"),
    "template that steers": ([SEVEN, *B, "--classes", "a,b", "--template", "a\x1b{}"], r"control character"),
    "no template": ([SEVEN, *B, "--classes", "a,b", "--template", ""], r"exactly one \{\}"),
    "name without a word": ([SEVEN, *B, "--classes", "cat,_"], r"--classes, name 2: .*no word"),
    "narrow image": (["{tmp}/narrow.png", *B, "--classes", "cat"], r"narrow.png.*1000000 x 1 pixels: too narrow"),
    "damaged image": (["{tmp}/cut.png", *B, "--classes", "cat"], r"cut.png is not a readable image"),
    "image of too many pixels": (["{tmp}/huge.png", *B, "--classes", "cat"], r"huge.png.*pixels"),
    "PostScript": (["{tmp}/script.jpg", *B, "--classes", "cat"], r"script.jpg is not a readable image"),
    "no class to show": ([SEVEN, *B, "--classes", "cat", "--top", "0"], r"top \(0\).*at least 1"),
    "no batch": ([SEVEN, *B, "--classes", "cat", "--batch-size", "0"], r"batch_size \(0\).*at least 1"),
    "unknown format": ([SEVEN, "--format", "xml"], r"--format: invalid choice: 'xml'.*text"),
    "unknown device": ([SEVEN, *B, "--classes", "cat", "--device", "gpu"], r"--device.*'gpu'.*cpu"),
    "epoch that is not kept": ([SEVEN, "--model-dir", "{run}", "--load-epoch", "7"], r"epochs there: 1"),
}

SWEEPS = {
    "unknown trainer": (["--trainers", "BMPI"], r"'BMPI'; there are: .*BMIP"),
    "no trainer": ([], r"arguments are required: --trainers"),
    "unknown setting": (["--trainers", "BMIP=none"], r"no setting 'none'; there are: .*tiny_c2"),
    "unknown data set": (["--trainers", "BMIP", "--datasets", "digit"], r"configs/datasets/digit.yaml; there are"),
    "data set file that grows": ([*OWN_DATA, "{tmp}/bomb.yaml"], r"bomb.yaml.*alias"),
    "data set file with a key twice": ([*OWN_DATA, "{tmp}/twice.yaml"], r"twice.yaml.*a second time"),
    "no root": (["--trainers", "BMIP", "--datasets", "{tmp}/other.yaml"], r"needs --root"),
    "option without a value": ([*SWEEP, "--", "OPTIM.LR"], r"'OPTIM.LR' has no value"),
    "unknown key": ([*SWEEP, "--", "OPTIM.LRR", "0.1"], r"OPTIM.LRR.*OPTIM.LR"),
    "odd value": ([*SWEEP, "--", "OPTIM.LR", "None"], r"OPTIM.LR is None.*above 0"),
    "odd value of a method": ([*SWEEP, "--", "TRAINER.BMIP.GATE", "soft"], r"TRAINER.BMIP.GATE 'soft'.*attention"),
    "odd value, and a good one": ([*SWEEP, "--", "OPTIM.LR", "0", "OPTIM.LR", "0.1"], r"OPTIM.LR is 0.*above 0"),
    "odd value to vary": ([*SWEEP, "--vary", "TRAINER.BMIP.N_CTX", "2", "-1"], r"TRAINER.BMIP.N_CTX is -1"),
    "unknown tracker": ([*SWEEP, "--", "TRAIN.TRACKERS", "('mlflow',)"], r"mlflow.*TRAIN.TRACKERS"),
    "folder of a run": ([*SWEEP, "--", "OUTPUT_DIR", "{tmp}/x"], r"OUTPUT_DIR is set for every run: use --output"),
    "seed of a run": ([*SWEEP, "--", "SEED", "1"], r"SEED is set for every run: use --seeds"),
    "root of a run": ([*SWEEP, "--", "DATASET.ROOT", "x"], r"DATASET.ROOT is set for every run: use --root"),
    "seed to vary": ([*SWEEP, "--vary", "SEED", "1", "2"], r"SEED is set for every run: use --seeds"),
    "template of two": ([*SWEEP, "--", "DATASET.TEMPLATE", "{} {:d}"], r"DATASET.TEMPLATE .*exactly one"),
    "GPU in words": ([*SWEEP, "--gpus", "one"], r"--gpus one: 'one' is no GPU's number"),
    "GPUs with a comma": ([*SWEEP, "--gpus", "0,1"], r"--gpus 0,1: '0,1' is no GPU's number.*spaces"),
    "GPU twice": ([*SWEEP, "--gpus", "0", "00"], r"--gpus 0 00: a GPU comes twice.*--slots"),
    "huge seed": ([*SWEEP, "--seeds", str(10**30)], r"--seeds 1000.*from 0 to 4294967295"),
    "negative seed": ([*SWEEP, "--seeds=-1"], r"--seeds -1: give numbers from 0"),
    "seed twice": ([*SWEEP, "--seeds", "1", "1"], r"--seeds: 1 comes twice"),
    "data set twice": ([*SWEEP, "--datasets", "digits", "digits"], r"--datasets: digits comes twice"),
    "key varied twice": (
        [*SWEEP, "--vary", "OPTIM.LR", "0.1", "--vary", "OPTIM.LR", "0.2"],
        r"--vary: OPTIM\.LR comes twice",
    ),
    "negative shots": ([*SWEEP, "--shots=-7"], r"--shots -7: give numbers from -1"),
    "too many slots": ([*SWEEP, "--slots", str(10**9)], r"--slots 1000000000.*at most 1024"),
    "nothing to vary": ([*SWEEP, "--vary", "OPTIM.LR"], r"--vary OPTIM.LR: give a key and its values"),
    "no slot": ([*SWEEP, "--slots", "0"], r"--slots 0"),
    "slurm parameter": ([*SWEEP, "--launcher", "slurm", "--slurm", "mem"], r"--slurm 'mem': write KEY=VALUE"),
    "unknown table": ([*SWEEP, "--table", "chess"], r"--table: invalid choice: 'chess'"),
    "option of another table": (
        [*SWEEP, "--table", "open_world", "--depths", "1"],
        r"--depths is of --table ablation_depth",
    ),
    "classifier without new classes": (
        ["--trainers", "LPPlusPlus", "--datasets", "digits"],
        r"LPPlusPlus predicts the classes that it is trained on, and open_world .*--protocol few_shot",
    ),
    "no such root": ([*SWEEP, "--root", "nowhere"], r"--root nowhere is no folder"),
    "unknown protocol": ([*SWEEP, "--protocol", "chess"], r"--protocol: invalid choice: 'chess'"),
}

REPORTING = {
    "runs missing": (["table", "no/such/folder"], r"no/such/folder: no such file or folder"),
    "folder without runs": (["table", "docs"], r"docs: no results.json.*no finished run"),
    "results cut short": (["table", "{tmp}/cut"], r"cut/results.json: not valid JSON.*redo the run"),
    "results are a list": (["table", "{tmp}/list"], r"list/results.json: not the results of a run"),
    "results are deep": (["table", "{tmp}/deep"], r"deep/results.json.*nested"),
    "results are large": (["table", "{tmp}/large"], r"large/results.json.*bytes"),
    "accuracy is infinite": (["table", "{tmp}/infinite"], r"infinite/results.json.*accuracy"),
    "digits": (["table", "--digits", "-1", "."], r"--digits must be between 0 and 10, got -1"),
    "unknown protocol": (["table", "--protocol", "chess", "."], r"--protocol: invalid choice: 'chess'"),
    "page exists": (["html", "{run}", "-o", "{tmp}/text.pt"], r"text.pt exists already.*--force"),
    "plot of no format": (["plot", "base_new", "{run}", "-o", "{tmp}/a.gif"], r"a.gif: the name must end in .png"),
    "trainer that has no run": (["compare", "CoOp", "Copp", "{run}"], r"Copp"),
    "unknown command": (["chart"], r"invalid choice: 'chart'"),
    "a text": (["rank", "README.md"], r"README.md is no results.json: give a run's, or a folder with runs"),
    "all before the method": (["compare", "all", "CoOp", "{run}"], r"all comes second: .* compare CoOp all RUNS"),
    "unknown metric": (["table", "--metrics", "cost,foo", "{run}"], r"'foo'.*all, ece, .*cost \(params, train_seconds"),
}

LOOK = {
    "no run": (["errors", "assets"], r"assets holds no run.*give its --output-dir"),
    "features as a text": (["features", "{run}", "-o", "{tmp}/f.txt"], r"f.txt: the name must end in .npz"),
    "features exist": (["features", "{run}", "-o", "{tmp}/text.pt"], r"text.pt exists already.*--force"),
    "unknown class split": (["errors", "{run}", "--split", "novel"], r"--split novel: the run was tested on"),
    "no image on the page": (["errors", "{run}", "--limit", "0"], r"--limit is 0: at least 1"),
    "plot of no format": (["attention", "{run}", SEVEN, "-o", "{tmp}/a.gif"], r"a.gif: the name must end in .png"),
    "image missing": (["attention", "{run}", "none.png", "-o", "{tmp}/a.png"], r"no image at none.png"),
    "damaged image": (["attention", "{run}", "{tmp}/cut.png", "-o", "{tmp}/a.png"], r"cut.png is not a readable image"),
    "unknown command": (["classes", "{run}"], r"invalid choice: 'classes'"),
}

CHECKPOINT = {
    "no checkpoint": (["show", "assets"], r"Model not found at .assets.*give the OUTPUT_DIR"),
    "a text": (["show", "{tmp}/text.pt"], r"text.pt.*not a checkpoint"),
    "runs code": (["show", "{tmp}/evil.pt"], r"evil.pt"),
    "converted already": (
        ["convert", "{run}/prompt_learner/model.pth.tar-1", "{tmp}/new"],
        r"this project's format already",
    ),
    "target exists": (["convert", "{tmp}/evil.pt", "{tmp}/text.pt"], r"text.pt exists and is not overwritten"),
    "no run to share": (["export", "assets", "{tmp}/out"], r"assets has no results.json: give the --output-dir"),
    "push to nowhere": (["export", "{run}", "{tmp}/out", "--push", "nonsense"], r"--push 'nonsense'.*USER/REPOSITORY"),
    "words of a backbone without a name": (
        ["words", "{run}", "--backbone", "hf:"],
        r"was trained with the words of bundled:",
    ),
    "no word": (["words", "{run}", "--top", "0"], r"--top is 0: at least 1"),
    "unknown command": (["push"], r"invalid choice: 'push'"),
}

DATASETS = {
    "unknown name": (["check", "Caltech", "--root", "{tmp}"], r"'Caltech'.*Caltech101"),
    "no root": (["check", "EuroSAT"], r"--root"),
    "download of what is bundled": (["download", "Digits", "--root", "{tmp}"], r"no data set is called 'Digits'"),
    "split of data that is not there": (["make-split", "EuroSAT", "--root", "{tmp}", "--seed", "1"], r"eurosat"),
    "selection runs code": (
        ["import-selection", "Digits", "{tmp}/shot_1-seed_1.pkl", "--root", "assets"],
        r"shot_1",
    ),
    "selection missing": (["import-selection", "Digits", "none.pkl", "--root", "assets"], r"none.pkl"),
    "seed in words": (["make-split", "EuroSAT", "--root", "{tmp}", "--seed", "one"], r"--seed: invalid int"),
}


def make_files(folder: Path) -> None:
    """Write the files that the cases name."""
    bomb = 'a: &a ["x", "x"]\n' + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijk"))
    texts = {
        "text.pt": "not weights",
        "evil.pt": "cos\nsystem\n(S'touch executed'\ntR.",
        "shot_1-seed_1.pkl": "cos\nsystem\n(S'touch executed'\ntR.",
        "code.py": "raise SystemExit('executed')",
        "object.yaml": "SEED: !!python/object/apply:os.system ['touch executed']\n",
        "bomb.yaml": bomb,
        "cycle.yaml": "OPTIM: &a {LR: *a}\n",
        "deep.yaml": "OPTIM: " + "[" * 300 + "]" * 300,
        "large.yaml": "#" * (1 << 20) + "\n",
        "twice.yaml": "OPTIM:\n  LR: 0.1\n  LR: 0.2\n",
        "list.yaml": "- DATASET\n",
        "section.yaml": "OPTIM: 3\n",
        "other.yaml": "DATASET:\n  NAME: Digits\n",
        "half/config.yaml": "INPUT: {SIZE: [48, 48]}\nDATASET: {NAME: Digits}\n",
        "odd/config.yaml": (
            "INPUT: {PIXEL_MEAN: null}\nDATALOADER: {}\nMODEL: {}\nTRAINER: {NAME: BMIP}\nDATASET: {NAME: Digits}\n"
        ),
        "script.jpg": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(executed) (w) file\n%%EOF\n",
        "cut/results.json": '{"schema_version": 1,',
        "list/results.json": "[]",
        "deep/results.json": "[" * 100_000,
        "infinite/results.json": "",
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "latin.txt").write_bytes("Küken".encode("latin-1"))
    (folder / "cut.png").write_bytes(Path(SEVEN).read_bytes()[:80])
    (folder / "narrow.png").write_bytes(png_of(1_000_000, 1))
    (folder / "huge.png").write_bytes(png_of(40_000, 40_000))
    (folder / "large").mkdir()
    with open(folder / "large" / "results.json", "wb") as file:
        file.truncate(1 << 30)  # a hole: it takes no room on the disk


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says it has so many pixels, and whose pixels are few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def with_infinite_accuracy(results: Path, folder: Path) -> None:
    """A finished run's results whose accuracy JSON's grammar allows and no run can have."""
    record = json.loads(results.read_text(encoding="utf-8"))
    text = json.dumps(record | {"metrics": {"all": {"accuracy": 12345}}}).replace("12345", "1e999")
    (folder / "infinite" / "results.json").write_text(text, encoding="utf-8")
