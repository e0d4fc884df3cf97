"""Every option of mmfusion, once: name, type, default, unit, help, allowed values.

The command line, the options block of a bundle, ``options.json`` and the "did you mean" of a misspelt name are
all made from :data:`OPTIONS`, so that they cannot drift apart. Functions take the same names as keyword arguments.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmfusion.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as in Python, YAML and JSON; on the command line with dashes.
        kind: ``str``, ``int``, ``float`` or ``bool``: the type of the value, or of each value of a list; ``dict``: a
            table of names and values, checked where it is used.
        default: the value when none is given; None means "not set".
        help: one line for people.
        unit: physical unit of the number, if it has one.
        choices: allowed values; empty allows all.
        count: None for a single value, 0 for a list of any length but zero, n for a list of exactly n.
        low, high: allowed range of a number, both ends included.
        rising: the values of a list must rise.
        point: beside the choices, a point as text: ``x,y,z``.
        each: one value for all modalities, or a table with one for each.
    """

    name: str
    kind: type
    default: Any
    help: str
    unit: str = ""
    choices: tuple[Any, ...] = ()
    count: int | None = None
    low: float = float("-inf")
    high: float = float("inf")
    rising: bool = False
    point: bool = False
    each: bool = False

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Any:
        """``value`` in this option's type.

        Raises:
            OptionError: the value has another type, is not allowed, or is out of range.
        """
        if value is None:
            return None
        if self.each and isinstance(value, Mapping):
            return {str(name): self._check_one(one) for name, one in value.items()}
        if self.count is None:
            return self._check_one(value)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if self.choices:  # as a,b too
            values = [part for one in values for part in (one.split(",") if isinstance(one, str) else [one])]
        if not values or (self.count and len(values) != self.count):
            wanted = f"{self.count} values" if self.count else "at least one value"
            raise OptionError(f"option {self.name} takes {wanted}, found {value!r}")
        checked = [self._check_one(one) for one in values]
        if self.rising and checked != sorted(set(checked)):
            raise OptionError(f"option {self.name} takes rising values, found {' '.join(map(str, checked))}")
        if self.kind is str and len(set(checked)) < len(checked):
            raise OptionError(f"option {self.name} names something twice: {' '.join(checked)}")
        return checked

    def _check_one(self, value: Any) -> Any:
        wanted: Any = {float: (int, float), dict: Mapping}.get(self.kind, self.kind)
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise OptionError(
                f"option {self.name} takes {_KIND_WORDS[self.kind]}, found {value!r} ({type(value).__name__})"
            )
        value = self.kind(value)
        if self.point and (point := _as_point(value)):
            return point
        if self.choices and value not in self.choices:
            raise OptionError(unknown(self.name.replace("_", " "), value, self.choices))
        if self.kind in (int, float) and not self.low <= value <= self.high:
            span = (
                f"lie between {self.low:g} and {self.high:g}"
                if self.high < float("inf")
                else f"be {self.low:g} or more"
            )
            raise OptionError(f"option {self.name} must {span}, found {value:g}")
        return value


def _as_point(text: str) -> str | None:
    """``x,y,z`` in one spelling; None if it is no point."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        return None
    return ",".join(map(repr, numbers)) if len(numbers) == 3 and all(map(math.isfinite, numbers)) else None


_KIND_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    dict: "a table of names and values",
}

_KINDS = ("translation", "rigid", "similarity", "affine", "deformable", "none")  # registration.KINDS, without torch

_TABLE = (
    # the study
    Option("modalities", str, None, "modalities in the order of the channels (default: the manifest's)", count=0),
    Option("classes", str, None, "class labels in the order of the outputs (default: sorted labels)", count=0),
    Option("labels", str, None, "label table (CSV with a column subject) to join by subject"),
    Option("label", str, None, "column of the label table, or of participants.tsv in a BIDS tree"),
    Option("subject_from", str, None, "who is who: PatientID, folder, or a pattern of folders as '*/{subject}'"),
    Option("pseudonymize", str, None, "file with a secret key (made if it is not there); subjects become keyed hashes"),
    Option("deep", bool, False, "read the voxels, too: what is not finite, constant, implausible, or there twice"),
    # preparing
    Option("reference", str, ["ct", "mr", "pet"], "the others are registered to the first of these", count=0),
    Option("register", str, "rigid", "registration to the reference", choices=_KINDS),
    Option("init", str, "auto", "start of the registration", choices=("auto", "identity", "centers")),
    Option("to", str, None, "template space to bring every case to", choices=("mni152",)),
    Option("brain_mask", bool, False, "set everything outside the brain of the template to air or zero"),
    Option("spacing", float, [2.0, 2.0, 2.0], "voxel size of the grid", unit="mm", count=3, low=0.1, high=50),
    Option(
        "size",
        int,
        [96, 96, 96],
        "voxels of the grid along x, y, z",
        unit="voxels",
        count=3,
        low=4,
        high=1024,
    ),
    Option(
        "center",
        str,
        "foreground",
        "what the grid is centered on: foreground, volume, mask, or a point X,Y,Z (RAS, mm; --center=-8,20,31)",
        choices=("foreground", "volume", "mask"),
        point=True,
    ),
    Option(
        "crop_margin", float, None, "empty all that is farther than this from the centered body or mask", "mm", low=0
    ),
    Option("ct_window", float, [-160.0, 240.0], "HU that become 0 and 1", unit="HU", count=2, rising=True),
    Option(
        "suv",
        str,
        "bw",
        "PET by body weight, lean body mass or body surface; none: values as stored",
        choices=("bw", "lbm", "bsa", "none"),
    ),
    Option("suv_max", float, 25.0, "SUV that becomes 1", unit="SUV", low=0.1),
    Option(
        "suvr",
        str,
        None,
        "PET over its mean in a label map: FILE#LABEL ({subject}, {session} in it), or manifest (its column)",
    ),
    Option(
        "pet_max", float, None, "value that becomes 1 of PET that is no SUV (default: its 99th percentile)", low=1e-9
    ),
    Option("weight_unit", str, "kg", "what headers of PET have the body weight in", choices=("kg", "g", "lb")),
    Option(
        "mr_normalize",
        str,
        "percentile",
        "MR scaling by the native foreground: 99th percentile to 1; mean 0 and deviation 1; or to a standard histogram",
        choices=("percentile", "zscore", "histogram"),
    ),
    Option("mr_standard", str, None, "scale of mr_normalize histogram, as JSON (default: fitted on training subjects)"),
    Option("bias_correction", bool, False, "remove the bias field of MR (N4)"),
    Option(
        "frame",
        str,
        None,
        "frame of 4D scans: first, last, mean, number from 0, numbers (20-24) or times (40min-60min)",
    ),
    Option("assume_orientation", str, None, "axis directions of NIfTI files without any, as LAS"),
    Option(
        "nan",
        str,
        "refuse",
        "a scan with voxels that are not a number: refuse it, or take them as background (air for CT, else 0)",
        choices=("refuse", "background"),
    ),
    Option(
        "roi", str, None, "structures of RTSTRUCT and SEG masks, or labels of label files; * and ? allowed", count=0
    ),
    Option("workers", int, 0, "processes; 0 means one a core (4 with another device)", low=0, high=256),
    Option("time_limit", int, 1800, "for one case, which fails if it takes longer; 0 means none", unit="s", low=0),
    Option("strict", bool, False, "stop at the first case that fails"),
    Option("scheduler", str, None, "address of a Dask scheduler whose workers do the work (extra: cluster)"),
    Option(
        "features",
        str,
        None,
        "of the mask in each scan: first order, shape, 3D co-occurrence, or those of mirp (extra: radiomics)",
        choices=("first", "shape", "glcm", "mirp"),
        count=0,
    ),
    Option("dtype", str, "float32", "of the stored tensors", choices=("float32", "float16")),
    Option("save_nifti", bool, False, "also write the scans on the grid as NIfTI, in a BIDS derivative"),
    Option("keep_paths", bool, False, "name original files in what is written (paths may hold a patient's name)"),
    Option("note", str, None, "why the case is right, kept with the decision"),
    Option("undo", bool, False, "take the decision back"),
    Option("device", str, "cpu", "where registration (predict: the network) runs: cpu, or a torch device such as cuda"),
    # the network
    Option(
        "strategy",
        str,
        "single_level",
        "where the modalities are fused",
        choices=("input", "single_level", "hierarchical", "attention", "decision", "hybrid"),
    ),
    Option(
        "encoder",
        str,
        "resnet10",
        "what turns a volume into features",
        choices=(
            *("resnet10", "resnet18", "resnet34", "resnet50", "densenet121", "se_resnet50", "efficientnet_b0", "cnn"),
            *("vit", "swin", "slices", "m3t", "m3t_small"),
        ),
        each=True,
    ),
    Option("fusion", str, None, "fusion operator or rule (default: the strategy's first)"),
    Option("width", float, 1.0, "multiplies the encoder's channels", low=0.01, high=4),
    Option("norm", str, "group", "normalization layers", choices=("group", "batch", "instance")),
    Option("dropout", float, 0.0, "share of features dropped before the classifier", low=0, high=0.95),
    Option("shared", bool, False, "one encoder for all modalities"),
    Option("absent", str, "zero", "what stands for an absent modality", choices=("zero", "learned")),
    Option("decision", str, "mean", "decision rule of strategy hybrid"),
    Option("head", str, "linear", "classifier: linear, or bayesian for uncertainty", choices=("linear", "bayesian")),
    Option("standardize", bool, True, "standardize the encoded vectors over the cases"),
    Option("losses", dict, None, "weight of each further loss by name (default: the strategy's)"),
    Option("encoder_options", dict, None, "the encoder's own options"),
    Option("fusion_options", dict, None, "the fusion operator's own options"),
    # training
    Option("cohort", str, None, "cohort folder that mmfusion prepare wrote"),
    Option("manifest", str, None, "manifest to prepare first, or to predict on"),
    Option("run_dir", str, None, "run folder to write or to read"),
    Option("epochs", int, 50, "passes over the training cases", low=1),
    Option("batch_size", int, 8, "cases a step", low=1),
    Option("learning_rate", float, 1e-3, "of AdamW, at its peak (one cycle)", low=0, high=10),
    Option("weight_decay", float, 1e-2, "of AdamW", low=0),
    Option("patience", int, 20, "epochs without a better validation before stopping", low=1),
    Option(
        "validation_share",
        float,
        0.2,
        "share of the training subjects kept for validation",
        low=0.01,
        high=0.9,
    ),
    Option(
        "test_share",
        float,
        0.2,
        "share of the subjects kept for the test, if no split is given",
        low=0,
        high=0.9,
    ),
    Option("fold", int, None, "number of the fold that is the test (default: no cross-validation)", low=0),
    Option("folds", int, 5, "folds of a cross-validation, if the manifest has no column fold", low=2),
    Option(
        "class_weights",
        bool,
        True,
        "weight the loss by inverse class frequency (undone in the probabilities)",
    ),
    Option(
        "threshold_rule",
        str,
        "prevalence",
        "threshold of two classes: the share of the last one in training, or youden (100 validation cases or more)",
        choices=("prevalence", "youden"),
    ),
    Option("augment", bool, True, "random flips, small affine motions and intensity changes in training"),
    Option("modality_drop", float, 0.1, "probability to hide a modality in training (never all)", low=0, high=0.9),
    Option("seed", int, 0, "of everything random", low=0),
    Option("resume", bool, True, "go on with a training that was ended before its last epoch"),
    Option("threads", int, 0, "CPU threads of torch; 0 leaves torch's own choice", low=0),
    Option("loaders", int, 0, "processes that load batches", low=0),
    Option(
        "precision",
        str,
        "float32",
        "what training steps compute in (float16 on a GPU only)",
        choices=("float32", "bfloat16", "float16"),
    ),
    Option(
        "track",
        str,
        None,
        "who is told the losses, beside history.csv (extras: tensorboard, mlflow)",
        choices=("tensorboard", "mlflow"),
        count=0,
    ),
    Option(
        "engine",
        str,
        "eager",
        "what runs the network: PyTorch, or its export as TorchScript or ONNX",
        choices=("eager", "torchscript", "onnx"),
    ),
    Option("trust", bool, False, "run model.ts (engine torchscript), a program that can do anything on this computer"),
    Option("part", str, "test", "which part of the split is evaluated", choices=("train", "validation", "test")),
    Option("resamples", int, 2000, "bootstrap resamples for the intervals", low=100),
    Option("case_control", bool, False, "subjects were chosen by their label: the number of each class is fixed"),
    # register, demo
    Option("kind", str, "rigid", "kind of registration (affine, if FIXED is a template)", choices=_KINDS),
    Option("transform_in", str, None, "ITK transform file to start from (trusted), or with --kind none to apply"),
    Option("fixed_mask", str, None, "mask file: only these voxels of FIXED are compared"),
    Option("moving_mask", str, None, "mask file: only these voxels of MOVING are compared"),
    Option("fixed_modality", str, None, "what FIXED holds, if it is no DICOM", choices=("ct", "pet", "mr")),
    Option("moving_modality", str, None, "what MOVING holds, if it is no DICOM", choices=("ct", "pet", "mr")),
    Option("out", str, None, "file or folder to write"),
    Option("overwrite", bool, False, "replace the file to write, if it is there (never one that is read)"),
    Option("transform_out", str, None, "ITK transform file (.tfm, .h5) to write, fixed to moving"),
    Option("json", bool, False, "print one JSON object instead of text"),
    Option("subjects", int, 40, "simulated subjects that go the whole way as raw scans", low=8),
    Option("train_subjects", int, 400, "simulated subjects to train on, a fifth of them for validation", low=40),
    Option("test_subjects", int, 1000, "simulated subjects of the test part", low=1),
)

OPTIONS: dict[str, Option] = {option.name: option for option in _TABLE}

_PET = ("suv", "suvr", "weight_unit")  # how PET is read
GROUPS: dict[str, tuple[str, ...]] = {
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
        *("standardize", "losses", "encoder_options", "fusion_options"),
    ),
    "training": (
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
        *("class_weights", "threshold_rule", "augment", "modality_drop", "seed"),
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
    "simulate": ("out", "train_subjects", "test_subjects", "seed", "suv_max"),
    "predict": ("out", "engine", "trust", "batch_size", "workers", "time_limit", "device"),
    "export": ("engine",),
    "report": (),
}
GROUPS["case"] = ("modalities", *GROUPS["geometry"], *GROUPS["intensity"])  # what decides a prepared case
LATER = {name: OPTIONS[name].default for name in ("suvr", "weight_unit", "pet_max", "nan", "roi")}
"""Options of a case that files of earlier versions do not name, with the values that say what these did."""
GROUPS["bundle new"] = ("modalities", "classes", *GROUPS["geometry"], *GROUPS["network"])
GROUPS["bundle new"] += tuple(name for name in GROUPS["training"] if name != "fold")  # it is of a run, not of a study
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


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """The sentence for a name that does not exist: ``unknown encoder 'resnet11'; did you mean 'resnet10'? ...``."""
    names = [str(one) for one in known]
    near = nearest(str(name), names)
    guess = f"; did you mean '{near}'?" if near else "."
    return f"unknown {what} '{name}'{guess} Known: {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that is spelled most like ``name``, in whatever case; None if none is near."""
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[near[0]] if near else None


def resolve(given: Mapping[str, Any], group: str) -> dict[str, Any]:
    """All options of a group: what is given, checked, and the defaults of the rest.

    Args:
        given: option values by name; None counts as not given.
        group: a key of :data:`GROUPS`.

    Raises:
        OptionError: a name does not exist in the group, or a value does not fit.
    """
    names = GROUPS[group]
    for name in given:
        if name not in names:
            raise OptionError(unknown("option", name, names))
    out = {}
    for name in names:
        value = OPTIONS[name].check(given.get(name))
        out[name] = OPTIONS[name].default if value is None else value
    return out
