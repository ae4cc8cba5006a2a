"""Every option of the engine with its default: Dassl's keys, Dassl's values, and six more.

The six: `DATALOADER.CACHE_MB`, `DATALOADER.DEVICE_TRANSFORM`, `INPUT.JPEG_DRAFT`, `INPUT.EXIF_ORIENTATION`,
`OPTIM.FUSED` and `TRAIN.PATIENCE`.

Trainer and data set files add their own options on import (`cfg_default.TRAINER.MINE = CfgNode({...})`), so this tree
is never frozen; runs work on the clone that `get_cfg_default()` returns.
"""

from .node import CfgNode

_C = CfgNode()

_C.VERSION = 1
_C.OUTPUT_DIR = "./output"  # log, checkpoints and TensorBoard events of the run
_C.RESUME = ""  # directory of an earlier run to continue; empty: OUTPUT_DIR
_C.SEED = -1  # negative: a different run each time
_C.USE_CUDA = True
_C.VERBOSE = True

_C.INPUT = CfgNode(
    {
        "SIZE": (224, 224),  # height, width
        "INTERPOLATION": "bilinear",  # bilinear, bicubic or nearest
        "TRANSFORMS": (),  # names in dassl.data.transforms.AVAI_CHOICES
        "NO_TRANSFORM": False,  # True: images reach the loader as they are on disk
        # 0: JPEG files are decoded at full size, as Dassl does. Above 0: at the smallest of 1, 1/2, 1/4 and 1/8 of
        # it that leaves both edges at least this many times SIZE. Faster, not exact: in training, crops fall elsewhere.
        "JPEG_DRAFT": 0.0,
        # True: turn images upright as their EXIF orientation says. False, as Dassl: pixels as they are stored.
        "EXIF_ORIENTATION": False,
        "PIXEL_MEAN": [0.485, 0.456, 0.406],  # ImageNet's
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "CROP_PADDING": 4,  # random_crop
        "RRCROP_SCALE": (0.08, 1.0),  # random_resized_crop: range of the area
        "CUTOUT_N": 1,  # cutout: holes, and their side in pixels
        "CUTOUT_LEN": 16,
        "GN_MEAN": 0.0,  # gaussian_noise
        "GN_STD": 0.15,
        "RANDAUGMENT_N": 2,  # operations per image
        "RANDAUGMENT_M": 10,  # their strength, 0 to 30
        "COLORJITTER_B": 0.4,  # brightness, contrast, saturation, hue
        "COLORJITTER_C": 0.4,
        "COLORJITTER_S": 0.4,
        "COLORJITTER_H": 0.1,
        "RGS_P": 0.2,  # randomgrayscale: probability
        "GB_P": 0.5,  # gaussian_blur: probability, and odd kernel size
        "GB_K": 21,
    }
)

_C.DATASET = CfgNode(
    {
        "ROOT": "",  # directory that holds the data sets
        "NAME": "",
        "SOURCE_DOMAINS": (),  # for data sets whose domains can be chosen
        "TARGET_DOMAINS": (),
        "NUM_LABELED": -1,  # labelled images in total (semi-supervised learning)
        "NUM_SHOTS": -1,  # images per class; below 1: all
        "VAL_PERCENT": 0.1,  # validation share (semi-supervised learning)
        "STL10_FOLD": -1,  # 0 to 9; negative: none
        "CIFAR_C_TYPE": "",
        "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False,  # labelled images join the unlabelled ones
    }
)

_C.DATALOADER = CfgNode(
    {
        "NUM_WORKERS": 4,
        # Memory in MiB for decoded training and validation images, 3 bytes per pixel, in all worker processes together;
        # what does not fit is decoded each time, 0 keeps nothing. Exact. 2048 holds 3,800 photographs of 500x375.
        "CACHE_MB": 2048,
        # True: the loader crops training images, and the device resizes, mirrors and normalises them, as Pillow does to
        # the last bit. For a GPU that waits for its images; needs random_resized_crop, random_flip, normalize only.
        "DEVICE_TRANSFORM": False,
        "K_TRANSFORMS": 1,  # views of each training image
        "RETURN_IMG0": False,  # also return the image without augmentation
        "TRAIN_X": {
            "SAMPLER": "RandomSampler",
            "BATCH_SIZE": 32,
            "N_DOMAIN": 0,  # RandomDomainSampler: domains per batch; below 1: all
            "N_INS": 16,  # RandomClassSampler: images per class in a batch
        },
        "TRAIN_U": {
            "SAME_AS_X": True,  # False: the four values below count
            "SAMPLER": "RandomSampler",
            "BATCH_SIZE": 32,
            "N_DOMAIN": 0,
            "N_INS": 16,
        },
        "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
    }
)

_C.MODEL = CfgNode(
    {
        "INIT_WEIGHTS": "",  # checkpoint to start from
        "BACKBONE": {"NAME": "", "PRETRAINED": True},
        "HEAD": {
            "NAME": "",  # empty: no layers between backbone and classifier
            "HIDDEN_LAYERS": (),  # widths, e.g. (512, 512)
            "ACTIVATION": "relu",
            "BN": True,
            "DROPOUT": 0.0,
        },
    }
)

_C.OPTIM = CfgNode(
    {
        "NAME": "adam",
        "LR": 0.0003,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,
        "SGD_DAMPNING": 0,
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": 0.99,
        "ADAM_BETA1": 0.9,  # also of amsgrad, adamw and radam
        "ADAM_BETA2": 0.999,
        "FUSED": True,  # on CUDA, one kernel for all parameters; sgd, adam, amsgrad and adamw have one
        "STAGED_LR": False,  # layers outside NEW_LAYERS learn at LR * BASE_LR_MULT
        "NEW_LAYERS": (),
        "BASE_LR_MULT": 0.1,
        "LR_SCHEDULER": "single_step",  # single_step, multi_step or cosine
        "STEPSIZE": (-1,),  # single_step: the last entry, below 1 means MAX_EPOCH
        "GAMMA": 0.1,
        "MAX_EPOCH": 10,
        "WARMUP_EPOCH": -1,  # below 1: no warm-up
        "WARMUP_TYPE": "linear",  # linear or constant
        "WARMUP_CONS_LR": 1e-5,  # the rate of a constant warm-up
        "WARMUP_MIN_LR": 1e-5,  # the first rate of a linear warm-up
        "WARMUP_RECOUNT": True,  # True: the schedule starts counting epochs after the warm-up
    }
)

_C.TRAIN = CfgNode(
    {
        "CHECKPOINT_FREQ": 0,  # epochs between kept checkpoints; below 1: the last only
        "PRINT_FREQ": 10,  # batches between log lines
        "COUNT_ITER": "train_x",  # what an epoch of TrainerXU runs over: train_x, train_u or smaller_one
        "PATIENCE": 0,  # stop after this many epochs without a better validation result; 0: never
    }
)

_C.TEST = CfgNode(
    {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,
        "COMPUTE_CMAT": False,  # save the confusion matrix as OUTPUT_DIR/cmat.pt
        "NO_TEST": False,
        "SPLIT": "test",  # test or val
        "FINAL_MODEL": "last_step",  # last_step, or best_val: the epoch with the best validation result
    }
)

# Sections of Dassl's own trainers, kept so that their config files load.
_C.TRAINER = CfgNode(
    {
        "NAME": "",
        # Domain adaptation
        "MCD": {"N_STEP_F": 4},
        "MME": {"LMDA": 0.1},
        "CDAC": {
            "CLASS_LR_MULTI": 10,
            "RAMPUP_COEF": 30,
            "RAMPUP_ITRS": 1000,
            "TOPK_MATCH": 5,
            "P_THRESH": 0.95,
            "STRONG_TRANSFORMS": (),
        },
        "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
        "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
        "DAEL": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
        # Domain generalization
        "CROSSGRAD": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
        "DDAIG": {
            "G_ARCH": "",
            "LMDA": 0.3,
            "CLAMP": False,
            "CLAMP_MIN": -1.0,
            "CLAMP_MAX": 1.0,
            "WARMUP": 0,
            "ALPHA": 0.5,
        },
        "DAELDG": {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
        "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
        # Semi-supervised learning
        "ENTMIN": {"LMDA": 1e-3},
        "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
        "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
        "FIXMATCH": {"WEIGHT_U": 1.0, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()},
    }
)
