"""Files to volumes in RAS+ mm with physical units, and back."""

from mmfusion.io.dates import ScanDate
from mmfusion.io.frame_choice import check_frame
from mmfusion.io.header import Header, kind_of
from mmfusion.io.index import find_series
from mmfusion.io.load import VOLUMES, load_volume, read_header, read_series_header
from mmfusion.io.masks import load_mask, open_mask
from mmfusion.io.nifti import pair_of
from mmfusion.io.nifti_write import check_volume_name, save_volume
from mmfusion.io.series import names_uid, split_series
from mmfusion.io.series_facts import Series
from mmfusion.io.sidecar import sidecar_of
from mmfusion.io.sniff import ending_of, is_common
from mmfusion.io.spelling import SPELLING_DIFFERENCES, clean_name, folded, names_nobody, persons
from mmfusion.io.suv import PET_DETAILS
from mmfusion.io.suv_dicom import suv_factor
from mmfusion.io.tags import pixel_bytes
from mmfusion.io.text_headers import voxels_file_of
from mmfusion.io.transform_files import check_transform_name, load_transform, save_transform
from mmfusion.io.walk import Unread, walk

__all__ = [
    "load_volume",
    "read_header",
    "read_series_header",
    "Header",
    "kind_of",
    "check_frame",
    "find_series",
    "Series",
    "ScanDate",
    "SPELLING_DIFFERENCES",
    "folded",
    "names_nobody",
    "clean_name",
    "persons",
    "Unread",
    "walk",
    "VOLUMES",
    "is_common",
    "ending_of",
    "split_series",
    "names_uid",
    "pixel_bytes",
    "pair_of",
    "sidecar_of",
    "voxels_file_of",
    "load_mask",
    "open_mask",
    "check_volume_name",
    "save_volume",
    "check_transform_name",
    "save_transform",
    "load_transform",
    "suv_factor",
    "PET_DETAILS",
]
