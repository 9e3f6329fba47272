"""The named recipes: those of the papers, and general ones. ``with_fields`` replaces single fields."""

from data.recipes.recipe import Recipe

# The thesis on IoU-based positives: RAS, 1 x 1 x 2.5 mm (x, y, z), [-500, 500] HU, foreground, x and y >= 96.
_CT_ABDOMEN_SLICES = Recipe(
    name="ct_abdomen_slices",
    kind="slices",
    modality="CT",
    spacing_mm=(2.5, 1.0, 1.0),
    window=(-500.0, 500.0),
    window_kind="hu",
    crop_above=0.0,
    pad_to=(1, 96, 96),
)

_ALL = (
    # The text implies normalised floats (16 bit here); the released code truncates to 8 bit, 3.9 HU per level.
    _CT_ABDOMEN_SLICES,
    _CT_ABDOMEN_SLICES.with_fields(name="ct_abdomen_slices_8bit", stored="uint8", rounding="truncate"),
    Recipe(
        name="ct_volume",
        kind="volume",
        modality="CT",
        spacing_mm=(1.5, 1.5, 1.5),
        window=(-1000.0, 1000.0),
        window_kind="hu",
        crop_above=0.0,
        min_slices=4,
    ),
    # Seed 003, section IV-D; slices are 2.5 mm apart by layout deeplesion.
    Recipe(
        name="ct_lesions",
        kind="volume",
        modality="CT",
        window=(-1024.0, 1050.0),
        window_kind="hu",
    ),
    # VoCo (Table 9), which resizes to 384 x 384 x 64 and then each of the 4 x 4 bases to 64 x 64 x 64. Stored at
    # 256 x 256 x 64 the bases are slices of the volume. The body's box (above -47.5 HU) is that of the
    # released loader, which however leaves out the resampling to 1.5 mm.
    Recipe(
        name="ct_voco",
        kind="volume",
        modality="CT",
        spacing_mm=(1.5, 1.5, 1.5),
        window=(-175.0, 250.0),
        window_kind="hu",
        crop_above=0.3,
        resize_to=(64, 256, 256),
        min_slices=4,
    ),
    Recipe(
        name="mri_volume",
        kind="volume",
        modality="MR",
        spacing_mm=(1.0, 1.0, 1.0),
        window=(0.5, 99.5),
        window_kind="percentile",
        min_slices=4,
    ),
    # Skull-stripped or not, air is a brain scan's lowest value: cropping to higher values saves half of the voxels.
    Recipe(
        name="mri_brain",
        kind="volume",
        modality="MR",
        spacing_mm=(1.0, 1.0, 1.0),
        window=(0.0, 99.8),
        window_kind="percentile",
        crop_above=0.0,
        pad_to=(96, 96, 96),
        min_slices=4,
    ),
    Recipe(
        name="xray",
        kind="image",
        modality="XR",
        window=(0.0, 100.0),
        window_kind="percentile",
        short_side=512,
        num_channels=1,
    ),
    Recipe(
        name="fundus",
        kind="image",
        modality="FUNDUS",
        window=(0.0, 1.0),
        window_kind="value",
        crop_above=0.05,  # the black border of a JPEG is not quite black
        short_side=512,
        num_channels=3,
        stored="uint8",
    ),
    Recipe(
        name="natural",
        kind="image",
        modality="NATURAL",
        window=(0.0, 1.0),
        window_kind="value",
        short_side=256,
        num_channels=3,
        stored="uint8",
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
