"""The other tools behind one form, for `registration_worker.py`: runs in the peers' environment, without the project.

A tool has ``read(job, role)``, outside the clock, and ``align(fixed, moving, kind, start)``, on the clock; the latter
returns a function that maps points ``[N, 3]`` of the fixed world to the moving world, RAS mm, after the clock stopped.

``start`` is where the search begins: ``header`` (the identity), ``geometry`` (centers of the fields of view together)
or ``mass`` (centers of mass together).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]
Points = Callable[[np.ndarray], np.ndarray]
LPS = np.array([-1.0, -1.0, 1.0])


def linear(matrix: np.ndarray) -> Points:
    """Of a 4 x 4 matrix in RAS."""
    return lambda points: points @ matrix[:3, :3].T + matrix[:3, 3]


def linear_lps(turn: np.ndarray, shift: np.ndarray, center: np.ndarray) -> np.ndarray:
    """4 x 4 in RAS of x -> turn (x - center) + center + shift in LPS."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, np.asarray(shift) + center - turn @ np.asarray(center)
    flip = np.diag([*LPS, 1.0])
    return flip @ matrix @ flip


class Elastix:
    """Default parameter maps ``rigid``, and ``rigid`` then ``affine``; no result image is written."""

    versions = ("itk-elastix", "itk-core")

    def __init__(self) -> None:
        import itk

        self.itk = itk

    def read(self, job: Job, role: str) -> Any:
        return self.itk.imread(job[role], self.itk.F)

    def align(self, fixed: Any, moving: Any, kind: str, start: str) -> Points:
        parameters = self.itk.ParameterObject.New()
        for name in {"rigid": ["rigid"], "affine": ["rigid", "affine"]}[kind]:
            values = parameters.GetDefaultParameterMap(name)
            values["WriteResultImage"] = ["false"]
            if name == "rigid" and start != "header":
                values["AutomaticTransformInitialization"] = ["true"]
                method = {"geometry": "GeometricalCenter", "mass": "CenterOfGravity"}[start]
                values["AutomaticTransformInitializationMethod"] = [method]
            parameters.AddParameterMap(values)
        _, found = self.itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, log_to_console=False
        )
        return lambda points: self._apply(found, points)

    def _apply(self, found: Any, points: np.ndarray) -> np.ndarray:
        for index in range(found.GetNumberOfParameterMaps()):  # the later ones act on what the earlier ones give
            values = found.GetParameterMap(index)
            numbers = np.array([float(v) for v in values["TransformParameters"]])
            center = np.array([float(v) for v in values["CenterOfRotationPoint"]])
            if values["Transform"][0] == "EulerTransform":
                euler = self.itk.Euler3DTransform[self.itk.D].New()
                euler.SetComputeZYX(values["ComputeZYX"][0] == "true")
                euler.SetRotation(*numbers[:3].tolist())
                turn = self.itk.array_from_matrix(euler.GetMatrix())
            else:
                turn = numbers[:9].reshape(3, 3)
            points = linear(linear_lps(turn, numbers[-3:], center))(points)
        return points


class Ants:
    """ANTsPy's ``registration`` with type ``Rigid``, ``Affine`` or ``SyN``; it resamples both images at its end."""

    versions = ("antspyx",)

    def __init__(self) -> None:
        import ants

        self.ants = ants

    def read(self, job: Job, role: str) -> Any:
        return self.ants.image_read(job[role])

    def align(self, fixed: Any, moving: Any, kind: str, start: str) -> Points:
        kinds = {"rigid": "Rigid", "affine": "Affine", "deformable": "SyN"}
        initial = {"mass": None, "header": "Identity", "geometry": None}[start]
        if start == "geometry":
            initial = str(Path(os.environ["SCRATCH"]) / "ants_start.mat")
            centers = [self._center(image) for image in (fixed, moving)]
            shift = self.ants.create_ants_transform(
                transform_type="AffineTransform", translation=(centers[1] - centers[0]).tolist()
            )
            self.ants.write_transform(shift, initial)
        found = self.ants.registration(fixed, moving, type_of_transform=kinds[kind], initial_transform=initial)[
            "fwdtransforms"
        ]
        return lambda points: self._apply(found, points)

    @staticmethod
    def _center(image: Any) -> np.ndarray:
        middle = (np.array(image.shape) - 1) / 2 * np.array(image.spacing)
        return np.array(image.origin) + np.array(image.direction) @ middle

    def _apply(self, found: list[str], points: np.ndarray) -> np.ndarray:
        import pandas

        table = pandas.DataFrame(points * LPS, columns=["x", "y", "z"])
        out = self.ants.apply_transforms_to_points(3, table, found).to_numpy()[:, :3] * LPS
        for path in found:
            Path(path).unlink(missing_ok=True)
        return out


class Greedy:
    """``-a`` with 6 or 12 degrees of freedom, NMI, 100x50x10 iterations."""

    versions = ("picsl_greedy",)

    def __init__(self) -> None:
        import picsl_greedy
        import SimpleITK

        self.greedy, self.sitk = picsl_greedy, SimpleITK

    def read(self, job: Job, role: str) -> Any:
        return self.sitk.ReadImage(job[role], self.sitk.sitkFloat32)

    def align(self, fixed: Any, moving: Any, kind: str, start: str) -> Points:
        tool, images = self.greedy.Greedy3D(), {"my_fixed": fixed, "my_moving": moving}
        begin = {"header": "-ia-identity", "geometry": "-ia-image-centers", "mass": "-ia my_start"}[start]
        if start == "mass":
            tool.execute("-moments 1 -i my_fixed my_moving -o my_start", my_start=None, **images)
        freedom = {"rigid": 6, "affine": 12}[kind]
        command = f"-a -dof {freedom} -m NMI -i my_fixed my_moving {begin} -n 100x50x10 -o my_affine"
        tool.execute(command, my_affine=None, **images)
        return linear(np.asarray(tool["my_affine"]))


class Sitk:
    """The usual notebook: Mattes information of 50 bins at 1 % of the voxels, gradient descent, 3 levels."""

    versions = ("SimpleITK",)

    def __init__(self) -> None:
        import SimpleITK

        self.sitk = SimpleITK

    def read(self, job: Job, role: str) -> Any:
        return self.sitk.ReadImage(job[role], self.sitk.sitkFloat32)

    def align(self, fixed: Any, moving: Any, kind: str, start: str) -> Points:
        found = self.transform(fixed, moving, kind, start)
        return lambda points: np.array([found.TransformPoint(p) for p in (points * LPS).tolist()]) * LPS

    def transform(self, fixed: Any, moving: Any, kind: str, start: str) -> Any:
        sitk = self.sitk
        transform = {"rigid": sitk.Euler3DTransform, "affine": lambda: sitk.AffineTransform(3)}[kind]()
        if start == "header":
            middle = [(n - 1) / 2 for n in fixed.GetSize()]
            transform.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint(middle))
        else:
            way = sitk.CenteredTransformInitializerFilter
            how = {"geometry": way.GEOMETRY, "mass": way.MOMENTS}[start]
            transform = sitk.CenteredTransformInitializer(fixed, moving, transform, how)
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.01, seed=1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsGradientDescent(
            learningRate=1.0, numberOfIterations=100, convergenceMinimumValue=1e-6, convergenceWindowSize=10
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInitialTransform(transform, inPlace=False)
        return method.Execute(fixed, moving)


TOOLS: dict[str, type] = {"elastix": Elastix, "ants": Ants, "greedy": Greedy, "simpleitk": Sitk}


def versions(tool: str) -> dict[str, str]:
    return {name: version(name) for name in TOOLS[tool].versions}
