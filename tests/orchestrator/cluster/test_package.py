"""What travels with a job: the code and the experiments, and none of a person's scans, whatever they are called."""

import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package

from data.sources.study import PICTURE_SUFFIXES, VOLUME_SUFFIXES
from orchestrator.cluster.package import Package, PackageError, package_of
from tests.clusters import ROOT
from tests.experiments import tiny_experiment

# What readers and sources know, what belongs to it, and what has no suffix at all: DICOM.
SCANS = (
    *VOLUME_SUFFIXES,
    *PICTURE_SUFFIXES,
    ".img",
    ".dcm",
    ".ima",
    ".npz",
    ".npy",
    ".csv",
    ".tsv",
    ".json",
    ".zip",
    "",
)
PLACES = (
    *("", "Doe_John_1957-03-12", "shards/set", "runs/a", "notes"),
    *("data", "data/readers", "methods", "orchestrator", "experiments", "experiments/voco", "cluster"),
)
NEEDED = {
    *("orchestrator/cli.py", "data/readers/dicom.py", "methods/voco.py", "experiments/voco/btcv.yaml"),
    *("pyproject.toml", "constraints.txt"),
}


def planted(folder: Path) -> set[str]:
    """Put scans of every kind beside the code and between it; return their names."""
    names = {str(Path(place) / f"Doe_John{suffix}") for place in PLACES for suffix in SCANS}
    names |= {f"{place}/IM0001" for place in PLACES[1:]}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"private")
    (folder / "orchestrator" / "scan.py").symlink_to(folder / "Doe_John.nii.gz")
    return {*names, "orchestrator/scan.py"}


def checkout(folder: Path, tracked: bool = True) -> Path:
    """Copy what git tracks here into a checkout."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True, timeout=60)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    if tracked:
        git(folder, "init", "-q")
        git(folder, "add", "-A")
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, timeout=60)


def packed(package: Package, folder: Path) -> set[str]:
    package.write(folder / "package.zip")
    with ZipFile(folder / "package.zip") as content:
        assert not [name for name in content.namelist() if content.read(name) == b"private"]
        return set(content.namelist())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["untracked", "tracked", "no checkout"])
def test_no_scan_travels_of_whatever_kind_and_wherever_it_lies(how: str, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout", tracked=how != "no checkout")
    scans = planted(folder)
    if how == "tracked":
        git(folder, "add", "-Af")
    names = packed(package_of(folder), tmp_path)
    assert names >= NEEDED
    assert not names & scans
    assert {Path(name).suffix for name in names} == {".py", ".yaml", ".toml", ".txt", ".md"}


@pytest.mark.slow
def test_ray_s_own_packing_leaves_the_same_scans_out(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout", tracked=False)
    scans = planted(folder)
    (folder / "orchestrator" / "scan.py").unlink()
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=True)
    with ZipFile(tmp_path / "package.zip") as content:
        names = {name for name in content.namelist() if not name.endswith("/")}
    assert names == set(package_of(folder).files)
    assert not names & scans


def test_ray_s_launcher_copies_single_files_that_hold_no_scans() -> None:
    mounts = yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"]
    assert set(mounts.values()) == {"~/.ray/auth_token", "pyproject.toml", "constraints.txt", "README.md"}


@pytest.mark.slow
def test_an_experiment_that_git_does_not_track_travels_where_the_command_names_it(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout")
    tree = tiny_experiment("mine", "/shards", tmp_path, 1)
    (folder / "mine.yaml").write_text(yaml.safe_dump(tree))
    (folder / "row.yaml").write_text("base: mine.yaml\n")
    (folder / "table.yaml").write_text("experiment: row.yaml\ncohorts: {phantom: cohort.yaml}\n")
    (folder / "cohort.yaml").write_text("kind: abdomen\n")
    package = package_of(folder, ["table.yaml"])
    assert package.asked == ("cohort.yaml", "mine.yaml", "row.yaml", "table.yaml")
    assert packed(package, tmp_path) >= {*NEEDED, *package.asked}
    assert "sent for this command, though git does not track it: cohort.yaml, mine.yaml" in package.remarks()[1]


@pytest.mark.slow
def test_an_experiment_outside_of_the_working_directory_is_refused(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout")
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    for config in ("../mine.yaml", str(tmp_path / "mine.yaml")):
        with pytest.raises(PackageError, match=r"mine\.yaml: lies outside the working directory .* copy the file to"):
            package_of(folder, [config])


@pytest.mark.slow
def test_code_that_stays_here_is_named_and_what_travels_is_counted(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout")
    (folder / "methods" / "mine.py").write_text("")
    (folder / "Doe_John").mkdir()
    (folder / "Doe_John" / "scan.dcm").write_text("private")
    package = package_of(folder)
    said = package.remarks()
    assert said[0].startswith(f"working directory: {len(package.files)} files, {package.num_bytes / 2**20:.1f} MiB (")
    assert said[1].startswith("not sent: methods/mine.py; if the job needs them, move them into data, methods, ")
    assert "Doe_John" not in " ".join(said)


@pytest.mark.slow
def test_a_copy_of_the_code_without_git_says_how_files_were_chosen(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout", tracked=False)
    assert "the working directory is not a git checkout" in package_of(folder).remarks()[1]
    git(tmp_path, "init", "-q")
    assert "the working directory is not a git checkout" in package_of(folder).remarks()[1], "another repository's"


def test_a_folder_without_the_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no orchestrator/cli\.py; .* --working-dir"):
        package_of(tmp_path)
