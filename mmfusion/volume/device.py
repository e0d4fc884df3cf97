"""Whether a torch device is there, asked before any work starts."""

from __future__ import annotations

from mmfusion.errors import OptionError


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here; for ``cpu`` torch is not even imported.

    Raises:
        OptionError: no such device, or not on this machine.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().split("\n")[0].rstrip(".")
        raise OptionError(f"device {device} cannot be used: {why}. Use cpu, or a device of this machine") from None
