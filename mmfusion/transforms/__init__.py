"""MONAI dictionary transforms, thin, over the rooms below: all of preparing in one, and its single steps.

Importing this room imports MONAI (some seconds). Every class ends in ``d``, as in MONAI: it takes and gives a
dictionary. :class:`PrepareCased` is what the bundles use; the single steps are for people who compose their own.
"""

from mmfusion.transforms.augmentation import RandModalityDropd, training_augmentation
from mmfusion.transforms.prepared import LoadPreparedCased, PrepareCased
from mmfusion.transforms.steps import (
    ClipSUVd,
    LoadVolumed,
    NormalizeMRd,
    RegisterToReferenced,
    ResampleToGridd,
    StackModalitiesd,
    WindowCTd,
)
from mmfusion.transforms.tensors import from_meta_tensor, to_meta_tensor, transform_from_meta, transform_to_meta

__all__ = [
    "PrepareCased",
    "LoadPreparedCased",
    "LoadVolumed",
    "RegisterToReferenced",
    "ResampleToGridd",
    "WindowCTd",
    "ClipSUVd",
    "NormalizeMRd",
    "StackModalitiesd",
    "RandModalityDropd",
    "training_augmentation",
    "to_meta_tensor",
    "from_meta_tensor",
    "transform_to_meta",
    "transform_from_meta",
]
