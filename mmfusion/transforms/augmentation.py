"""Random changes of training cases: motion, contrast, and modalities that go missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    Randomizable,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Transform,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


class RandModalityDropd(Randomizable, Transform):
    """Hide each present modality with a probability, but never the last one.

    Args:
        probability: of hiding, for each modality.

    Takes and gives ``image [M, D, H, W]`` and ``present [M]``. Hidden and absent channels are zero afterwards, also
    where a shift of intensity went over them before.
    """

    def __init__(self, probability: float = 0.1) -> None:
        self.probability = probability

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        present = np.asarray(data["present"], bool)
        hidden = present & (self.R.random(len(present)) < self.probability)
        if hidden.any() and hidden.sum() == present.sum():  # keep one, each with the same chance
            hidden[self.R.choice(np.flatnonzero(present))] = False
        left = torch.from_numpy(present & ~hidden)
        image = data["image"].clone()
        image[~left] = 0
        return {**data, "image": image, "present": left}


def training_augmentation(augment: bool = True, modality_drop: float = 0.1) -> Compose:
    """What a training case goes through: flips left to right, small affine motion, contrast, hidden modalities.

    All modalities of a case move together (they are registered); contrast changes each for itself. MONAI's
    ``DataLoader`` seeds it from its own ``generator``, anew in each worker, whatever was set before; without one call
    ``set_random_state``.

    Args:
        augment: motion and contrast; without it only modalities are hidden.
        modality_drop: probability for each modality to be hidden (never all).
    """
    steps: list[Any] = []
    if augment:
        steps = [
            RandFlipd("image", prob=0.5, spatial_axis=0),
            RandAffined(
                "image",
                prob=0.5,
                rotate_range=(0.1, 0.1, 0.1),
                scale_range=(0.1, 0.1, 0.1),
                translate_range=(3, 3, 3),
                padding_mode="zeros",
                mode="bilinear",
            ),
            RandScaleIntensityd("image", factors=0.15, prob=0.5, channel_wise=True),
            RandShiftIntensityd("image", offsets=0.05, prob=0.3, channel_wise=True),
        ]
    return Compose([*steps, RandModalityDropd(modality_drop)])
