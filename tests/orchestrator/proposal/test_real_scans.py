"""The files of experiments/real_scans on the real scans, with a few steps instead of epochs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from data.phantoms.photographs import write_photographs
from data.shards.index import ShardSet
from orchestrator.config import files as configs
from orchestrator.ingest.request import load
from orchestrator.ingest.run import ingest
from orchestrator.proposal import files as initial
from orchestrator.proposal.fingerprint import Machine
from orchestrator.runs.finetune import FinetuningResult, finetune
from orchestrator.runs.pretrain import pretrain
from tests.documents import ROOT, blocks_of

pytestmark = pytest.mark.slow
FOLDER = ROOT / "experiments" / "real_scans"
# Studies found and left out, and samples. Left out: copies in PneumoniaMNIST and IDRiD, MedNIST's constant pictures.
EXPECTED = {
    "brain": (4, 0, 4),
    "ct": (17, 0, 836),
    "ct_volumes": (16, 0, 16),
    "fundus": (300, 1, 299),
    "hippocampus": (72, 0, 72),
    "hippocampus_sizes": (72, 0, 72),
    "lidc": (1, 0, 133),
    "mednist": (900, 2, 898),
    "modality": (22, 0, 22),
    "mr": (16, 0, 16),
    "mr_ct": (29, 0, 29),
    "pet": (2, 0, 2),
    "photographs": (8, 0, 8),
    "pneumoniamnist": (5030, 28, 5002),
    "sarcoma": (11, 0, 592),
    "sarcoma_boxes": (11, 0, 11),
    "sarcoma_volumes": (11, 0, 11),
    "xray": (940, 0, 940),
}
SMALL_SIMSIAM = ["encoder.features=[4,4,4,8,8,4]", "method.projector_dim=16", "method.predictor_dim=8"]
SMALL_SCRATCH = ["encoder.features=[4,4,4,8,8]", "method={name: scratch}"]
QUICK = [
    "budget={epochs: null, steps: 2, batch_size: 4}",
    "downstream.budget={epochs: null, steps: 2, batch_size: 2}", "downstream.evaluate_every_epochs=100",
    "resources.readers=0",
]  # fmt: skip

Ingested = Callable[[str], ShardSet]


@pytest.fixture(scope="module")
def ingested(ray_cluster: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """Ingest a source by the name of its file, once; what it needs is written as the document says."""
    out = tmp_path_factory.mktemp("shards")
    python = (
        block.text for block in blocks_of(ROOT / "docs" / "reference" / "real_scans.md") if block.language == "python"
    )
    written = dict(zip(("hippocampus_sizes", "modality"), python, strict=True))

    @cache
    def run(name: str) -> ShardSet:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAYDIOLOGY_TEST_DATA", str(scans))
            patch.chdir(out)
            if name in written:
                exec(written[name], {})
            if name == "photographs":
                write_photographs(Path(name), num_patients=8, size=64)
            report = ingest(load({"out": str(out / name)}, str(FOLDER / f"ingest_{name}.yaml")))
        assert report.shards is not None
        return report.shards

    return run


def test_the_sources_are_all_there_are() -> None:
    assert sorted(path.stem.removeprefix("ingest_") for path in FOLDER.glob("ingest_*.yaml")) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_source_is_ingested(ingested: Ingested, name: str) -> None:
    shards = ingested(name)
    counts = shards.counts
    assert (counts["studies_found"], counts["studies_quarantined"], shards.num_samples) == EXPECTED[name]


def test_label_values_without_names_are_called_by_their_numbers(ingested: Ingested) -> None:
    assert ingested("sarcoma").label_names == {1: "tumour"}
    assert ingested("hippocampus").label_names == {1: "anterior", 2: "posterior"}
    assert ingested("ct").label_names == {1: "tumour"}


def test_half_of_the_volumes_are_mr_and_no_patient_is_in_two_splits(ingested: Ingested) -> None:
    shards = ingested("modality")
    assert sorted(shards.rows["classes"].to_pylist()) == [[0]] * 11 + [[1]] * 11
    splits = set(zip(shards.rows["patient"].to_pylist(), shards.rows["split"].to_pylist(), strict=True))
    assert len(splits) == 11


def test_half_of_the_hippocampi_are_large(ingested: Ingested) -> None:
    assert sorted(ingested("hippocampus_sizes").rows["classes"].to_pylist()) == [[0]] * 36 + [[1]] * 36


@pytest.mark.parametrize("name", ["ct_volumes", "fundus", "hippocampus", "mednist", "pneumoniamnist", "sarcoma"])
def test_a_first_experiment_fits_real_scans(name: str, ingested: Ingested, tmp_path: Path) -> None:
    """It is checked as a dry run checks it; tests/orchestrator/proposal/test_initial.py holds what it says."""
    shards = ingested(name)
    files = initial.write(shards.uri, None, str(tmp_path), Machine(cores=2, free_bytes=8 * 2**30))
    experiment = configs.load(files[0])
    assert experiment.encoder.spatial_dims == shards.spatial_dims
    assert len(files) == (2 if experiment.downstream else 1)


def test_labels_of_a_single_patient_get_a_pretraining_alone(ingested: Ingested, tmp_path: Path) -> None:
    (file,) = initial.write(ingested("brain").uri, None, str(tmp_path), Machine(cores=2, free_bytes=8 * 2**30))
    assert configs.load(file).downstream is None
    assert "labelled patients: 1 in split train, 0 in val" in " ".join(file.read_text().replace("#", "").split())


@pytest.mark.soak
def test_sarcoma_is_segmented_after_pretraining_on_slices_of_all_ct(ingested: Ingested, tmp_path: Path) -> None:
    done = _pretrained_and_finetuned("sarcoma", ingested("ct"), ingested("sarcoma"), tmp_path, SMALL_SIMSIAM)
    assert {name for name in done.scores if name.startswith("dice/")} == {"dice/tumour"}
    assert 0 <= done.scores["dice_mean"] <= 1
    assert (done.folder / "pictures" / "predictions.png").stat().st_size > 0


def test_hippocampus_is_segmented_in_3d(ingested: Ingested, tmp_path: Path) -> None:
    shards = ingested("hippocampus")
    done = _pretrained_and_finetuned("hippocampus", shards, shards, tmp_path, [SMALL_SIMSIAM[0], SMALL_SCRATCH[1]])
    assert {name for name in done.scores if name.startswith("dice/")} == {"dice/anterior", "dice/posterior"}
    assert all(0 <= done.scores[name] <= 1 for name in ("dice/anterior", "dice/posterior"))


@pytest.mark.soak
def test_grades_of_fundus_photographs_are_told(ingested: Ingested, tmp_path: Path) -> None:
    shards = ingested("fundus")
    done = _pretrained_and_finetuned("proxy_fundus", shards, shards, tmp_path, SMALL_SCRATCH)
    assert done.scores["score"] == done.scores["kappa_quadratic"]
    assert 0 <= done.scores["accuracy"] <= 1
    assert {path.name for path in (done.folder / "pictures").iterdir()} >= {"predictions.png", "confusions.png"}


def _pretrained_and_finetuned(
    name: str, images: ShardSet, labelled: ShardSet, home: Path, small: list[str]
) -> FinetuningResult:
    places = [f"data.shards={images.uri}", f"downstream.shards={labelled.uri}", f"home={home}"]
    experiment = configs.load(str(FOLDER / f"{name}.yaml"), [*places, *small, *QUICK])
    return finetune(experiment, pretrain(experiment))
