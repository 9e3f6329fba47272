"""NRRD and MetaImage by SimpleITK: LPS -> RAS. Headers are checked first: ITK dies of some and guesses what lacks."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name in its own documentation)
from jaxtyping import Float64

from data.files import local_path, locate, open_file
from data.quarantine import GIVE_PICTURE, SPLIT_VOLUMES, BadStudy, damaged, foreign
from data.readers.metaimage import check_metaimage, parse_metaimage
from data.readers.nrrd import check_nrrd, parse_nrrd
from data.scan import Scan, spacing_of

_WHOLE = "a whole NRRD or MetaImage file"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER_BYTES = 65536
_DEFLATE = 1100  # zlib makes nothing smaller than by this factor

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings print the file's name


def read_itk(uri: str, num_channels: int = 1) -> Scan:
    """Read a NRRD or MetaImage file to (C, D, H, W) with the affine of (d, h, w) in RAS+ mm."""
    _check_header(uri)
    with local_path(uri) as path:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            image = reader.Execute()
        except RuntimeError:
            if _is_of_several_files(uri):
                raise BadStudy(
                    "a header whose voxels lie in several files, one of which is missing or damaged",
                    "all of them",
                    "add the files that the header lists",
                ) from None
            raise damaged("a header or voxels that SimpleITK cannot read", _WHOLE) from None
    _check_image(image, num_channels)
    voxels = sitk.GetArrayFromImage(image)
    voxels = np.moveaxis(voxels, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else voxels[None]
    if voxels.dtype.itemsize == 8:
        voxels = voxels.astype(np.float32)
    affine = _affine(image)
    return Scan(voxels, spacing_of(affine), "", affine)


def _check_header(uri: str) -> None:
    """Raise BadStudy for a header that ITK must not see, and for voxels that cannot be all there."""
    with open_file(uri) as file:
        head, num_bytes = file.read(_HEADER_BYTES), file.size()
    if re.match(rb"NRRD\d{4}", head):
        fields, length = parse_nrrd(head)
        needed, data_file = check_nrrd(fields), fields.get("data file", "")
        raw = fields["encoding"].lower() == "raw"
    else:
        if (other := foreign(head, _WHOLE)) is not None:
            raise other
        fields, length = parse_metaimage(head)
        needed, data_file = check_metaimage(fields), fields["ElementDataFile"]
        data_file = "" if data_file.lower() == "local" else data_file
        raw = fields.get("CompressedData", "").lower() != "true" and fields.get("BinaryData", "").lower() != "false"
    have = _bytes_beside(uri, data_file) if data_file else num_bytes - length
    if have is not None and needed > have * (1 if raw else _DEFLATE):
        raise damaged(f"{have} bytes of voxels", f"{needed} bytes{'' if raw else ', compressed'}, as the header says")


def _is_of_several_files(uri: str) -> bool:
    with open_file(uri) as file:
        head = file.read(_HEADER_BYTES)
    return re.search(rb"^(data ?file:|ElementDataFile\s*=)\s*(LIST|\S*%)", head, re.M) is not None


def _bytes_beside(uri: str, name: str) -> int | None:
    """Return the size of the file that holds a header's voxels; None where it names several by a list or pattern."""
    filesystem, path = locate(uri)
    if filesystem.type_name != "local":  # only the header would be copied here
        raise BadStudy(
            "a remote header whose voxels lie in another file", "header and voxels in one file", "use .nrrd or .mha"
        )
    if name.upper().startswith("LIST") or "%" in name:
        return None
    voxels = Path(path).parent / name
    if not voxels.is_file():
        raise BadStudy(
            "a header without its voxels, which lie in another file", "both files side by side", "add that file"
        )
    return voxels.stat().st_size


def _check_image(image: sitk.Image, num_channels: int) -> None:
    if image.GetDimension() != 3:
        raise BadStudy(
            f"{image.GetDimension()} axes of {image.GetSize()} voxels",
            "3 axes (x, y, z)",
            f"{GIVE_PICTURE}; {SPLIT_VOLUMES}",
        )
    components = image.GetNumberOfComponentsPerPixel()
    if components not in (1, num_channels):
        raise BadStudy(
            f"{components} values per voxel", f"{num_channels}", "convert colour or vectors to intensities"
        )
    if "complex" in image.GetPixelIDTypeAsString():
        raise BadStudy("complex voxels", "one real intensity per voxel", "convert to a magnitude")


def _affine(image: sitk.Image) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of (d, h, w) in RAS+; ITK's index is (x, y, z) and its world LPS."""
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = directions * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return (_LPS_TO_RAS @ affine)[:, [2, 1, 0, 3]]
