"""Files to volumes in RAS+ mm with physical units, and back."""

from mmfusion.io.header import Header, kind_of
from mmfusion.io.index import Series, find_series
from mmfusion.io.load import load_volume, read_header, read_series_header
from mmfusion.io.masks import load_mask
from mmfusion.io.nifti import check_volume_name, save_volume
from mmfusion.io.series import split_series
from mmfusion.io.sidecar import sidecar_of
from mmfusion.io.suv import PET_DETAILS
from mmfusion.io.suv_dicom import suv_factor
from mmfusion.io.text_headers import voxels_file_of
from mmfusion.io.transform_files import check_transform_name, load_transform, save_transform

__all__ = [
    "load_volume",
    "read_header",
    "read_series_header",
    "Header",
    "kind_of",
    "find_series",
    "Series",
    "split_series",
    "sidecar_of",
    "voxels_file_of",
    "load_mask",
    "check_volume_name",
    "save_volume",
    "check_transform_name",
    "save_transform",
    "load_transform",
    "suv_factor",
    "PET_DETAILS",
]
