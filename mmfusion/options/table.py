"""The table of options: name, type, default, help, unit, allowed values; and which command has which."""

from __future__ import annotations

from mmfusion import families
from mmfusion.options.option import Option

_KINDS = ("translation", "rigid", "similarity", "affine", "deformable", "none")  # registration.KINDS, without torch

_TABLE = (
    # the study
    Option("options", str, None, "Take what is not given from this file with options by name (YAML or JSON)"),
    Option(
        "modalities", str, None, "Modalities in the order of the channels, the manifest's if none are given", count=0
    ),
    Option("classes", str, None, "Class labels in the order of the outputs, sorted if none are given", count=0),
    Option("labels", str, None, "Join this label table (CSV with a column subject) by subject"),
    Option(
        "label", str, None, "Take the class from this column of the label table, or of participants.tsv in a BIDS tree"
    ),
    Option("subject_from", str, None, "Who is who: PatientID, folder, or a pattern of folders as '*/{subject}'"),
    Option(
        "pseudonymize",
        str,
        None,
        "Turn subjects into keyed hashes by the secret key in this file, which is made if it is not there",
    ),
    Option("deep", bool, False, "Read the voxels, too: what is not finite, constant, implausible, or there twice"),
    # preparing
    Option(
        "reference",
        str,
        ["ct", "mr", "pet"],
        "The others are registered to the first of these that a case has",
        count=0,
    ),
    Option("register", str, "rigid", "Register the others to the reference by motions of this kind", choices=_KINDS),
    Option(
        "init",
        str,
        "auto",
        "Start the registration here: identity trusts the headers, centers ignores them",
        choices=("auto", "identity", "centers"),
    ),
    Option("to", str, None, "Bring every case to this template space", choices=("mni152",)),
    Option("brain_mask", bool, False, "Set everything outside the brain of the template to air or zero"),
    Option(
        "spacing", float, [2.0, 2.0, 2.0], "Voxel size of the grid along x, y, z", unit="mm", count=3, low=0.1, high=50
    ),
    Option(
        "size",
        int,
        [96, 96, 96],
        "Voxels of the grid along x, y, z",
        unit="voxels",
        count=3,
        low=4,
        high=1024,
    ),
    Option(
        "center",
        str,
        "foreground",
        "What the grid is centered on: foreground, volume, mask, or a point X,Y,Z (RAS, mm; --center=-8,20,31)",
        choices=("foreground", "volume", "mask"),
        point=True,
    ),
    Option(
        "crop_margin", float, None, "Empty all that is farther than this from the centered body or mask", "mm", low=0
    ),
    Option("ct_window", float, [-160.0, 240.0], "HU that become 0 and 1", unit="HU", count=2, rising=True),
    Option(
        "suv",
        str,
        "bw",
        "Scale PET by body weight, lean body mass or body surface; none takes its values as stored",
        choices=("bw", "lbm", "bsa", "none"),
    ),
    Option("suv_max", float, 25.0, "SUV that becomes 1", unit="SUV", low=0.1),
    Option(
        "suvr",
        str,
        None,
        "Divide PET by its mean in a label map: FILE#LABEL ({subject}, {session} in it), or manifest (its column)",
    ),
    Option(
        "pet_max",
        float,
        None,
        "Value that becomes 1 of PET that is no SUV, in its own unit; its 99th percentile if not given",
        low=1e-9,
    ),
    Option("weight_unit", str, "kg", "Unit that headers of PET have the body weight in", choices=("kg", "g", "lb")),
    Option(
        "mr_normalize",
        str,
        "percentile",
        "Scale MR by the native foreground: 99th percentile to 1, mean 0 and deviation 1, or a standard histogram",
        choices=("percentile", "zscore", "histogram"),
    ),
    Option(
        "mr_standard",
        str,
        None,
        "Scale of mr_normalize histogram, as JSON; fitted on the training subjects if not given",
    ),
    Option("bias_correction", bool, False, "Remove the bias field of MR (N4)"),
    Option(
        "frame",
        str,
        None,
        "Frame of 4D scans: first, last, mean, number from 0, numbers (20-24) or times (40min-60min)",
    ),
    Option("assume_orientation", str, None, "Axis directions of NIfTI files that do not say them, as LAS"),
    Option(
        "nan",
        str,
        "refuse",
        "Refuse a scan with voxels that are not a number, or take them as background (air for CT, else 0)",
        choices=("refuse", "background"),
    ),
    Option(
        "roi", str, None, "Structures of RTSTRUCT and SEG masks, or labels of label files; * and ? are allowed", count=0
    ),
    Option(
        "workers", int, 0, "Processes that prepare cases; 0 means one per core (4 with another device)", low=0, high=256
    ),
    Option("time_limit", int, 1800, "A case that takes longer fails; 0 means no limit", unit="s", low=0),
    Option("strict", bool, False, "Stop at the first case that fails"),
    Option(
        "scheduler", str, None, "Let the workers of the Dask scheduler at this address do the work (extra: cluster)"
    ),
    Option(
        "features",
        str,
        None,
        "Features of the mask in each scan: first order, shape, 3D co-occurrence, those of mirp (extra: radiomics)",
        choices=("first", "shape", "glcm", "mirp"),
        count=0,
    ),
    Option("dtype", str, "float32", "Type of the stored tensors", choices=("float32", "float16")),
    Option("save_nifti", bool, False, "Also write the scans on the grid as NIfTI, in a BIDS derivative"),
    Option("keep_paths", bool, False, "Name original files in what is written (paths may hold a patient's name)"),
    Option("note", str, None, "Why the case is right, kept with the decision"),
    Option("undo", bool, False, "Take the decision back"),
    Option("device", str, "cpu", "Where registration (predict: the network) runs: cpu, or a torch device such as cuda"),
    # the network
    Option("system", str, None, "Take what is not given from this system; mmfusion systems lists them"),
    Option(
        "strategy",
        str,
        "single_level",
        "Where the modalities are fused",
        choices=tuple(families.STRATEGIES),
    ),
    Option(
        "encoder",
        str,
        "resnet10",
        "What turns a volume into features",
        choices=tuple(families.ENCODERS),
        each=True,
    ),
    Option("fusion", str, None, "Fusion operator or rule, the strategy's first if not given", choices=families.FUSIONS),
    Option("width", float, 1.0, "Multiply the encoder's channels by this factor", low=0.01, high=4),
    Option("norm", str, "group", "Kind of the normalization layers", choices=("group", "batch", "instance")),
    Option("dropout", float, 0.0, "Share of features dropped before the classifier", low=0, high=0.95),
    Option("shared", bool, False, "Use one encoder for all modalities"),
    Option("absent", str, "zero", "What stands for an absent modality", choices=("zero", "learned")),
    Option("decision", str, "mean", "Decision rule of strategy hybrid", choices=tuple(families.DECISION_RULES)),
    Option(
        "head",
        str,
        "linear",
        "Classifier: linear, bayesian for uncertainty, or one that is fitted after training",
        choices=tuple(families.HEADS),
    ),
    Option(
        "conditioning",
        str,
        None,
        "How covariates act on the encoded features, film if not given",
        choices=tuple(families.CONDITIONINGS),
    ),
    Option("standardize", bool, True, "Standardize the encoded vectors over the cases"),
    Option(
        "losses",
        dict,
        None,
        "Weight of each further loss by name, the strategy's own if not given",
        choices=tuple(families.LOSSES),
    ),
    Option("encoder_options", dict, None, "The encoder's own options by name"),
    Option("fusion_options", dict, None, "The fusion operator's own options by name"),
    # training
    Option(
        "covariates",
        str,
        None,
        "Columns of the manifest, and measurements in cases.csv, that the network takes beside the images",
        count=0,
    ),
    Option("cohort", str, None, "Cohort folder that mmfusion prepare wrote"),
    Option("manifest", str, None, "Manifest to prepare first, or to predict on"),
    Option("run_dir", str, None, "Run folder to write or to read"),
    Option("epochs", int, 50, "Passes over the training cases", low=1),
    Option("batch_size", int, 8, "Cases that the network sees at a time", low=1),
    Option("learning_rate", float, 1e-3, "Learning rate of AdamW at its peak (one cycle)", low=0, high=10),
    Option("weight_decay", float, 1e-2, "Weight decay of AdamW", low=0),
    Option("patience", int, 20, "Stop after so many epochs without a better validation", low=1),
    Option(
        "validation_share",
        float,
        0.2,
        "Share of the training subjects kept for validation",
        low=0.01,
        high=0.9,
    ),
    Option(
        "test_share",
        float,
        0.2,
        "Share of the subjects kept for the test, if no split is given",
        low=0,
        high=0.9,
    ),
    Option("fold", int, None, "Number of the fold that is the test; no cross-validation if not given", low=0),
    Option("folds", int, 5, "Folds of a cross-validation, if the manifest has no column fold", low=2),
    Option(
        "class_weights",
        bool,
        True,
        "Weight the loss by inverse class frequency (undone in the probabilities)",
    ),
    Option(
        "threshold_rule",
        str,
        "prevalence",
        "Threshold of two classes: the share of the last one in training, or youden (100 validation cases or more)",
        choices=("prevalence", "youden"),
    ),
    Option("augment", bool, True, "Flip, move and change intensities at random in training"),
    Option("freeze_encoders", bool, False, "Train everything but the encoders, which stay as they start"),
    Option(
        "head_share",
        float,
        0.2,
        "Share of the training subjects that a fitted head learns from, and the layers before it do not",
        low=0.05,
        high=0.5,
    ),
    Option("modality_drop", float, 0.1, "Probability to hide a modality in training (never all)", low=0, high=0.9),
    Option("seed", int, 0, "Seed of everything random", low=0, high=2**63 - 1),
    Option("resume", bool, True, "Go on with a training that was ended before its last epoch"),
    Option("threads", int, 0, "CPU threads of torch; 0 leaves torch's own choice", low=0, high=1024),
    Option("loaders", int, 0, "Processes that load batches", low=0),
    Option(
        "precision",
        str,
        "float32",
        "What training steps compute in (float16 on a GPU only)",
        choices=("float32", "bfloat16", "float16"),
    ),
    Option(
        "track",
        str,
        None,
        "Who is told the losses, beside history.csv (extras: tensorboard, mlflow)",
        choices=("tensorboard", "mlflow"),
        count=0,
    ),
    Option(
        "engine",
        str,
        "eager",
        "What runs the network: PyTorch, or its export as ONNX",
        choices=("eager", "onnx"),
    ),
    Option("part", str, "test", "Part of the split that is evaluated", choices=("train", "validation", "test")),
    Option("resamples", int, 2000, "Bootstrap resamples for the intervals", low=100),
    Option("case_control", bool, False, "Subjects were chosen by their label: the number of each class is fixed"),
    # register, demo
    Option("kind", str, "rigid", "Kind of registration; affine is the default, if FIXED is a template", choices=_KINDS),
    Option("transform_in", str, None, "ITK transform file to start from (trusted), or with --kind none to apply"),
    Option("fixed_mask", str, None, "Compare only the voxels of FIXED in this mask file"),
    Option("moving_mask", str, None, "Compare only the voxels of MOVING in this mask file"),
    Option("fixed_modality", str, None, "What FIXED holds, if it is no DICOM", choices=("ct", "pet", "mr")),
    Option("moving_modality", str, None, "What MOVING holds, if it is no DICOM", choices=("ct", "pet", "mr")),
    Option("out", str, None, "File or folder to write"),
    Option("overwrite", bool, False, "Replace the file to write, if it is there (never one that is read)"),
    Option("transform_out", str, None, "ITK transform file (.tfm, .h5) to write, fixed to moving"),
    Option("json", bool, False, "Print one JSON object instead of text"),
    Option("subjects", int, 40, "Simulated subjects that go the whole way as raw scans", low=8),
    Option("train_subjects", int, 400, "Simulated subjects to train on, a fifth of them for validation", low=40),
    Option("test_subjects", int, 1000, "Simulated subjects of the test part", low=1),
    Option("with_covariates", bool, False, "Give the simulated subjects age, sex, site, a memory score and noise"),
    Option("measure", bool, False, "Measure volumes (ml) and mean values of regions of the simulated brains"),
)

OPTIONS: dict[str, Option] = {option.name: option for option in _TABLE}

_PET = ("suv", "suvr", "weight_unit")  # how PET is read
GROUPS: dict[str, tuple[str, ...]] = {
    "file": ("options",),  # of commands that read options from a file, too
    "index": ("out", "overwrite", "labels", "label", "subject_from", "pseudonymize"),
    "check": ("deep", "modalities", *_PET, "suv_max", "pet_max", "frame", "assume_orientation", "nan", "roi"),
    "geometry": (
        *("reference", "register", "init", "to", "brain_mask", "spacing", "size", "center", "crop_margin", "roi"),
    ),
    "intensity": (
        *("ct_window", *_PET, "suv_max", "pet_max", "mr_normalize", "mr_standard", "bias_correction"),
        *("frame", "assume_orientation", "nan"),
    ),
    "network": (
        *("strategy", "encoder", "fusion", "width", "norm", "dropout", "shared", "absent", "decision", "head"),
        *("conditioning", "standardize", "losses", "encoder_options", "fusion_options"),
    ),
    "training": (
        "covariates",
        *(
            "epochs",
            "batch_size",
            "learning_rate",
            "weight_decay",
            "patience",
            "validation_share",
            "test_share",
            "fold",
            "folds",
        ),
        *("class_weights", "threshold_rule", "augment", "modality_drop", "freeze_encoders", "head_share", "seed"),
    ),
    "machine": ("resume", "threads", "loaders", "precision", "track"),
    "register": (
        *(
            "kind",
            "init",
            "transform_in",
            "fixed_mask",
            "moving_mask",
            "device",
            "out",
            "transform_out",
            "overwrite",
            "json",
        ),
        *("fixed_modality", "moving_modality", "suv", "frame", "assume_orientation", "nan"),
    ),
    "accept": ("note", "undo"),
    "demo": ("out", "subjects", "seed"),
    "simulate": ("out", "train_subjects", "test_subjects", "seed", "suv_max", "to", "with_covariates", "measure"),
    "predict": ("out", "engine", "batch_size", "workers", "time_limit", "device"),
    "export": ("engine",),
    "report": (),
}
GROUPS["case"] = ("modalities", *GROUPS["geometry"], *GROUPS["intensity"])  # what decides a prepared case
LATER = {name: OPTIONS[name].default for name in ("suvr", "weight_unit", "pet_max", "nan", "roi")}
"""Options of a case that files of earlier versions do not name, with the values that say what these did."""
GROUPS["bundle new"] = ("system", "modalities", "classes", *GROUPS["geometry"], *GROUPS["network"])
GROUPS["bundle new"] += tuple(name for name in GROUPS["training"] if name != "fold")  # it is of a run, not of a study
GROUPS["study"] = (  # what decides a training
    "system",
    "modalities",
    "classes",
    *GROUPS["case"],
    *GROUPS["network"],
    *GROUPS["training"],
    *GROUPS["machine"],
)
GROUPS["train"] = ("cohort", "manifest", "run_dir", "workers", *GROUPS["study"])
GROUPS["evaluation"] = ("part", "batch_size", "resamples", "case_control", "seed", "threads", "loaders")
GROUPS["evaluate"] = ("run_dir", *GROUPS["evaluation"])
GROUPS["device"] = ("device",)
GROUPS["out"] = ("out",)
GROUPS["inference"] = ("run_dir", "manifest", "out", "batch_size", "workers", "threads", "loaders")
GROUPS["bundle pack"] = ("dtype",)
GROUPS["storage"] = ("features", "dtype", "save_nifti", "keep_paths")  # what decides the files of a prepared case
GROUPS["prepare"] = (
    "out",
    *GROUPS["case"],
    *GROUPS["storage"],
    "workers",
    "time_limit",
    "strict",
    "scheduler",
    "device",
)
