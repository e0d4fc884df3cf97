"""A run folder as an object: what a notebook holds after a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion.files import RunFolder, optional_fields
from mmfusion.predict import predict_manifest
from mmfusion.report import write_report
from mmfusion.training.evaluate import evaluate


@dataclass(frozen=True)
class Run:
    """The folder of one training, or of the folds of a cross-validation.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``: each number with its interval; empty before :meth:`evaluate`."""
        return optional_fields(RunFolder(self.path).metrics)

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Predict a part of the split, and write metrics and page, see :func:`mmfusion.evaluate`."""
        return evaluate(self.path, **options)

    def predict(self, manifest: str | Path, out: str | Path, **options: Any) -> Path:
        """Raw scans to ``OUT/predictions.csv``, see :func:`mmfusion.predict.predict_manifest`."""
        return predict_manifest(self.path, manifest, out, **options)

    def report(self) -> Path:
        """Write ``report.html`` from what the folder holds, and return its path."""
        return write_report(self.path)
