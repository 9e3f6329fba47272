"""Every command and every YAML block of a document, or of a comment, works as written, up to missing data."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator import cli
from orchestrator.cluster import launcher_file
from orchestrator.commands import jobs
from orchestrator.commands.parser import parse
from orchestrator.config.files import load, read
from orchestrator.proposal import files
from orchestrator.proposal.fingerprint import Machine
from orchestrator.provenance import as_in_job
from orchestrator.tables.grid import TableConfig
from tests.documents import DOCUMENTS, ROOT, TUTORIALS, Block, Told, blocks, commands, is_command, name_of
from tests.shardsets import write_slices

# What a command says where everything is right but the scans, shards or runs that it needs.
DATA_IS_MISSING = re.compile(
    r"no index\.parquet; expected a folder that `raydiology ingest` has finished|is not a readable folder|"
    r"no runs"
)
PICTURES = (" NIfTI  NRRD",)
# They need a cluster, a server, a browser, the folder of a run or a while: only how they are called is checked here.
# Tests of their own run them to their results.
CALLED_ONLY = ("job", "ui", "export", "embed", "doctor", "phantom")
# tests/test_tutorials.py runs their commands to their results.
RUN_ELSEWHERE = {name_of(path) for path in TUTORIALS}
TOLD = commands()
CHECKED_HERE = [told for told in TOLD if told.where not in RUN_ELSEWHERE]


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Be in a folder that has the repository's experiments and a first one, but neither scans nor shards nor runs."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("experiments", "cluster", "cluster.yaml", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    shards = write_slices(folder / "shards" / "scans")
    files.write(shards, None, str(folder), Machine(cores=2, free_bytes=8 * 2**30))
    shutil.rmtree(shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RAYDIOLOGY_HOME", str(folder / "keys"))
        patch.setenv("RAYDIOLOGY_TEST_DATA", str(folder / "scans"))
        yield folder


def words_of(told: Told) -> list[str]:
    return [word for word in shlex.split(told.text) if not re.fullmatch(r"[A-Z_]+=\S+", word)]


def of_program(*names: str, among: list[Told] = CHECKED_HERE) -> list[Told]:
    return [told for told in among if words_of(told)[0] in names]


def once_each(told: list[Told]) -> list[Told]:
    """Leave out a command that stands elsewhere too."""
    return list({(one.text, one.inline): one for one in reversed(told)}.values())[::-1]


def test_every_block_without_a_language_is_commands_or_a_known_picture() -> None:
    for block in blocks():
        if block.language == "" and block.where not in RUN_ELSEWHERE and not block.text.startswith(PICTURES):
            assert [line for line in block.lines if not is_command(line)] == [], block


def test_documents_and_comments_tell_commands() -> None:
    """So that a change of their form cannot leave them unread."""
    count = {name: len(of_program(name, among=TOLD)) for name in ("raydiology", "make", "ray", "kubectl")}
    assert count["raydiology"] > 100
    assert min(count.values()) >= 3
    verbs = {words_of(told)[1] for told in of_program("raydiology", among=TOLD)}
    assert set(cli.commands()) - verbs == {"schema"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("told", once_each(of_program("raydiology")), ids=str)
def test_raydiology_takes_the_command_and_lacks_nothing_but_data(
    told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(told)[1:]
    if told.inline and (len(words) == 1 or re.search(r"\b(FILE|ID|RUN|SHARDS)\b", told.text)):
        check_verb(words)
        return
    verb, asked = words[0], parse(words).params
    if verb == "submit":
        check_job(asked["job_command"])
        return
    if verb in CALLED_ONLY:
        return
    if verb in ("pretrain", "finetune", "probe", "sweep", "table"):
        words.append("--dry-run")
    if verb == "init":
        words += ["--out", "other"]
    code = cli.main(words)
    said = capsys.readouterr()
    if asked.get("cohort"):  # nothing is missing: it would make its phantoms and train for minutes
        assert (code, "phantoms is not written yet" in " ".join(said.out.split())) == (0, True), said.err
        return
    if verb == "table" and not TableConfig.model_validate(read(asked["table"])).runnable:
        assert (code, "missing (" in said.out) == (0, True), said.err
        return
    assert (code, bool(DATA_IS_MISSING.search(said.err))) == (2, True), said.err


def check_verb(words: list[str]) -> None:
    """Have the parser take a command with placeholders, or the name of a verb alone."""
    if len(words) > 1:
        parse(words)
        return
    with pytest.raises(SystemExit) as ended:
        parse([*words, "--help"])
    assert ended.value.code == 0


def check_job(job: list[str]) -> None:
    """Check a job as `submit` does before it uploads anything, and that no worker which it asks for stays idle."""
    asked = parse(job)
    jobs._check_job(asked, ROOT)
    with as_in_job():
        experiment = load(ROOT / asked.params["experiment"], asked.params["overrides"])
    assert [experiment.idle_workers(stage) for stage in experiment.pretraining] == [None]


@pytest.mark.parametrize(
    "block",
    [block for block in blocks() if block.language == "yaml" and block.where not in RUN_ELSEWHERE],
    ids=lambda block: block.where,
)
def test_a_yaml_block_is_a_file_that_lacks_nothing_but_data(
    block: Block, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "block.yaml").write_text(block.text)
    tree = yaml.safe_load(block.text)
    verb = "sweep" if "space" in tree else "table" if "rows" in tree else "finetune"
    code = cli.main([verb, "block.yaml", "--dry-run"])
    said = capsys.readouterr().err
    assert (code, bool(DATA_IS_MISSING.search(said))) == (2, True), said


@pytest.mark.parametrize("told", of_program("make"), ids=str)
def test_make_has_the_target(told: Told) -> None:
    run = subprocess.run(
        ["make", "-n", *words_of(told)[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own modules
@pytest.mark.parametrize("told", of_program("ray"), ids=str)
def test_ray_takes_the_command(told: Told) -> None:
    """Not run: it would start machines. Ray's own parser reads it, and its schema the file that it names."""
    import click
    from ray.scripts.scripts import cli as ray_cli

    verb, *rest = words_of(told.__class__(told.where, told.text.partition(">")[0]))[1:]
    with click.Context(ray_cli) as context:
        command = ray_cli.get_command(context, verb)
        assert command is not None, verb
        command.make_context(verb, rest, parent=context)
    for name in rest:
        if name.endswith(".yaml"):
            launcher_file.check(ROOT / name)


@pytest.mark.parametrize("told", of_program("kubectl"), ids=str)
def test_kubectl_is_given_files_that_are_there(told: Told) -> None:
    """Not run: it needs a Kubernetes. What it is to apply is a RayJob."""
    words = words_of(told)
    assert words[1] in ("create", "apply", "logs", "delete")
    if words[1] in ("apply", "delete"):
        assert yaml.safe_load((ROOT / words[-1]).read_text())["kind"] == "RayJob"
    if words[1] == "logs":
        name = yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())["metadata"]["name"]
        assert words[-1] == f"job/{name}"


@pytest.mark.parametrize("told", of_program("export", "source", "pre-commit", ".venv/bin/pip", "python3.11"), ids=str)
def test_what_sets_up_a_shell_is_there(told: Told) -> None:
    """Not run: installing needs a network and minutes, and CI's first command does it."""
    match words_of(told):
        case ["export"]:
            name, _, folder = told.text.partition(" ")[2].partition("=")
            assert name == "RAYDIOLOGY_TEST_DATA"
            assert folder == "../shared/data"
        case ["source", script]:
            assert (Path(sys.prefix) / Path(script).relative_to(".venv")).is_file()
        case ["pre-commit", "install"]:
            assert (Path(sys.prefix) / "bin" / "pre-commit").is_file()
        case [".venv/bin/pip", "install", requirement]:
            assert requirement in (ROOT / "constraints.txt").read_text().splitlines()
        case ["python3.11", "-m", "venv", ".venv"]:
            assert shutil.which("python3.11") or sys.version_info[:2] != (3, 11)
        case words:
            pytest.fail(f"nobody knows how to check {words}")


def test_messages_name_verbs_that_there_are() -> None:
    """Of the code: `raydiology VERB` in messages, docstrings and help."""
    for package in ("data", "methods", "orchestrator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            named = re.findall(r"`raydiology ([a-z]+)", path.read_text())
            assert set(named) <= set(cli.commands()), path


def test_links_of_documents_lead_to_files() -> None:
    for path in DOCUMENTS:
        links = re.findall(r"\]\(([^)#:\s]+)\)", path.read_text())
        written = [link for link in links if "generated/" not in link]  # the strict build holds the others
        assert [link for link in written if not (path.parent / link).exists()] == [], path
