"""Volumes of four channels, from NIfTI files to a step of training on regions, and to pictures."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data.labels import LABEL_MAP
from data.phantoms.brain import make_brain, write_brains
from data.readers import read_study
from data.recipes import RECIPES
from data.recipes.apply import apply
from data.shards.bundles import Bundle, BundleJob, join_rests, run_bundle
from data.shards.index import IndexCard, ShardSet, write_index
from data.shards.reader import ShardReader
from data.sources import find_studies
from data.sources.nnunet import label_names
from data.views.batch import Batch
from data.views.collate import collate
from methods.downstream.segmentation import Segmentation
from methods.encoders import UNetEncoder
from methods.rotation import Rotation
from orchestrator.judging.gallery import MaskGallery
from orchestrator.judging.pictures import draw_views
from tests.batches import FACTS, facts_of

SPACING_MM = (7.0, 6.0, 6.0)
RECIPE = RECIPES["mri_brain"].with_fields(spacing_mm=SPACING_MM, pad_to=(32, 32, 32))
REGIONS = {"whole tumour": (1, 2, 4), "tumour core": (1, 4), "enhancing tumour": (4,)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Three brains of four sequences as shards, written without Ray."""
    scans, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("shards")
    studies = tuple(find_studies(str(write_brains(scans, 3, seed=2, spacing_mm=SPACING_MM)), "nnunet"))
    job = BundleJob(str(out), RECIPE, bytes(32), seed=0, rows_per_group=1)
    manifest = run_bundle(job, Bundle(0, studies, ("train",) * len(studies), {}))
    rest = join_rests(job, "train", list(manifest.rests.values()))
    files = [*manifest.files, *([rest] if rest else [])]
    write_index(str(out), files, IndexCard(RECIPE.model_dump(mode="json"), label_names(str(scans))))
    return ShardSet.open(str(out))


@pytest.fixture(scope="module")
def batch(shards: ShardSet) -> Batch:
    table = ShardReader(shards, LABEL_MAP).read(shards.select("train").row_ids)
    zeros = pa.array(np.zeros(table.num_rows, dtype=np.int64))
    return collate(table.append_column("number", zeros).append_column("epoch", zeros).append_column("row", zeros))


def encoder() -> UNetEncoder:
    torch.manual_seed(0)
    return UNetEncoder(UNetEncoder.Config(spatial_dims=3, in_channels=4, features=(8, 8, 8, 8, 8, 8)))


@pytest.mark.slow
def test_shards_hold_four_channels_in_the_order_of_the_files(tmp_path: Path, shards: ShardSet, batch: Batch) -> None:
    assert (shards.num_channels, batch.voxels.shape[1]) == (4, 4)
    assert shards.label_names == {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}
    studies = find_studies(str(write_brains(tmp_path, 3, seed=2, spacing_mm=SPACING_MM)), "nnunet")
    written = [apply(RECIPE, read_study(study))[0] for study in studies]
    for stored, extent in zip(batch.voxels.numpy(), batch.extents, strict=True):
        inside = (slice(None), *(slice(0, length) for length in extent))
        assert any(np.array_equal(stored[inside], scan.voxels) for scan in written)
    first, brain = read_study(studies[0]), make_brain(2, 0, SPACING_MM)
    assert [np.sort(channel.ravel()).tolist() for channel in first.voxels] == [
        np.sort(channel.ravel()).tolist() for channel in brain.voxels
    ]


def test_each_channel_has_its_own_window(batch: Batch) -> None:
    for sample in batch.voxels.numpy():
        assert [int(channel.max()) for channel in sample] == [65535] * 4


def test_views_keep_the_channels_of_a_voxel_together(batch: Batch) -> None:
    method = Rotation(Rotation.Config(side=32, num_versions=1), encoder(), FACTS)
    views = method.views(batch, batch.rng(0))
    assert views.images[0].shape == (3, 4, 32, 32, 32)
    for image, stored, (low, high) in zip(views.images[0], batch.voxels, views.boxes[0].tolist(), strict=True):
        inside = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
        voxels = [cube.flatten(1).T.tolist() for cube in ((image * 65535).round().int(), stored[inside].int())]
        assert sorted(voxels[0]) == sorted(voxels[1])


@pytest.mark.slow
def test_a_step_of_training_reaches_the_weights_of_every_channel(shards: ShardSet, batch: Batch) -> None:
    config = Segmentation.Config(crop_size=(32, 32, 32), crops_per_sample=1, organ_prob=1.0, regions=REGIONS)
    method = Segmentation(config, encoder(), facts_of(shards.label_names))
    weights = next(p for p in method.encoder.parameters() if p.ndim == 5)
    before = weights.detach().clone()
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1)
    losses = method.loss(method.views(batch, batch.rng(0)))
    losses.total.backward()
    optimiser.step()
    assert weights.shape[1] == 4
    assert ((weights - before).abs().sum(dim=(0, 2, 3, 4)) > 1e-4).all()


@pytest.mark.slow
def test_pictures_show_the_first_channel_and_the_regions(shards: ShardSet, batch: Batch) -> None:
    config = Segmentation.Config(crop_size=(32, 32, 32), regions=REGIONS)
    method = Segmentation(config, encoder(), facts_of(shards.label_names)).eval()
    gallery = MaskGallery()
    judged = method.judge(batch)
    for index, true, predicted in judged.seen:
        gallery.offer(batch, index, true, predicted)
    for _, item in gallery.best.values():
        assert item.image.ndim == 2
        assert set(np.unique(item.truth)) <= {0, 1, 2, 3}
        assert 1 in item.truth
    drawn = gallery.draw(method.class_names)
    assert drawn is not None
    for png in (drawn, draw_views(batch, method.views(batch, batch.rng(0)))):
        assert min(Image.open(io.BytesIO(png)).size) > 300
    assert set(method.scores(judged.evidence).metrics) >= {f"dice/{name}" for name in ("whole tumour", "tumour core")}
