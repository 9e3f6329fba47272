"""NRRD and MetaImage by SimpleITK: LPS -> RAS."""

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name in its own documentation)
from jaxtyping import Float64

from data.files import local_path, locate, open_file
from data.quarantine import BadStudy
from data.readers.checks import spacing_of
from data.scan import Scan

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DETACHED = (b"data file:", b"datafile:", b"elementdatafile")
_HEADER_BYTES = 65536

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings print the file's name


def read_itk(uri: str, num_channels: int = 1) -> Scan:
    """Read a NRRD or MetaImage file to (C, D, H, W) with the affine of (d, h, w) in RAS+ mm."""
    _check_attached(uri)
    with local_path(uri) as path:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            image = reader.Execute()
        except RuntimeError:
            raise BadStudy(
                "a header or voxels that SimpleITK cannot read", "a whole NRRD or MetaImage file", "export it again"
            ) from None
    _check_image(image, num_channels)
    voxels = sitk.GetArrayFromImage(image)
    voxels = np.moveaxis(voxels, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else voxels[None]
    if voxels.dtype.itemsize == 8:
        voxels = voxels.astype(np.float32)
    affine = _affine(image)
    return Scan(voxels, spacing_of(affine), "", affine)


def _check_attached(uri: str) -> None:
    """Refuse a remote header whose voxels lie in another file: only the header would be copied here."""
    filesystem, _ = locate(uri)
    if filesystem.type_name == "local":
        return
    with open_file(uri) as file:
        head = file.read(_HEADER_BYTES).lower().replace(b" ", b"")
    value = next((head.split(word, 1)[1].lstrip(b"=") for word in _DETACHED if word in head), b"local")
    if not value.startswith(b"local"):
        raise BadStudy(
            "a remote header whose voxels lie in another file", "header and voxels in one file", "use .nrrd or .mha"
        )


def _check_image(image: sitk.Image, num_channels: int) -> None:
    if image.GetDimension() != 3:
        raise BadStudy(
            f"{image.GetDimension()} axes of {image.GetSize()} voxels",
            "3 axes (x, y, z)",
            "give a plane as a picture; split times into volumes",
        )
    components = image.GetNumberOfComponentsPerPixel()
    if components not in (1, num_channels):
        raise BadStudy(
            f"{components} values per voxel", f"{num_channels}", "convert colour or vectors to intensities"
        )
    if "complex" in image.GetPixelIDTypeAsString():
        raise BadStudy("complex voxels", "one real intensity per voxel", "convert to a magnitude")
    keys = image.GetMetaDataKeys()
    is_nrrd = "ITK_InputFilterName" in keys and image.GetMetaData("ITK_InputFilterName") == "NrrdImageIO"
    if is_nrrd and "NRRD_space" not in keys:
        raise BadStudy(
            "no orientation (no 'space' field)", "a space such as left-posterior-superior", "add the field"
        )


def _affine(image: sitk.Image) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of (d, h, w) in RAS+; ITK's index is (x, y, z) and its world LPS."""
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = directions * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return (_LPS_TO_RAS @ affine)[:, [2, 1, 0, 3]]
