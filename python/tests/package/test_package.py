"""What is published: source and wheel build, and the wheel works in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = PROJECT / "src"


def run(*command: str | Path, **environment: str) -> str:
    """What the command says; the test fails when it does."""
    # Nothing of the environment that the tests run in.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("LAYBY_", "PYTHON", "PIP_"))}
    done = subprocess.run(
        command,
        env={**own, **environment},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both; the wheel is made from the sdist, so that one must be complete."""
    folder = tmp_path_factory.mktemp("dist")
    # No isolation: the backend is among what the tests need.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, PROJECT)
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel and nothing else."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check", wheel)
    return python


def published() -> set[str]:
    files = (path for path in SOURCES.rglob("*") if path.is_file())
    return {str(path.relative_to(SOURCES)) for path in files if path.suffix in (".py", ".typed")}


def test_the_wheel_has_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == published()
    assert "layby/py.typed" in names


def test_the_sdist_has_what_a_wheel_is_made_of_and_no_tests(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in names if name.startswith("src/")} == {f"src/{n}" for n in published()}
    assert not {name for name in names if name.startswith("tests")}


def test_the_metadata_say_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        licences = {n.rpartition("/")[2] for n in archive.namelist() if "/licenses/" in n}
    assert metadata["Requires-Python"] == ">=3.11"
    # Nothing is needed; what an extra needs is marked as such.
    required = metadata.get_all("Requires-Dist") or []
    assert all("extra ==" in each for each in required), required
    assert {"LICENSE-MIT", "LICENSE-APACHE"} <= licences
    versions = {
        match[1]
        for each in metadata.get_all("Classifier") or []
        if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each))
    }
    assert versions == {"3.11", "3.12", "3.13", "3.14"}
    assert "layby.get" in str(metadata.get_payload())


def test_the_version_is_the_same_everywhere(python: Path) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    gateway = tomllib.loads((PROJECT.parent / "Cargo.toml").read_text())["package"]
    said = run(python, "-c", "import layby; print(layby.__version__)").strip()
    assert said == project["version"] == gateway["version"]


def test_the_licences_are_those_of_the_repository() -> None:
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        assert (PROJECT / name).read_bytes() == (PROJECT.parent / name).read_bytes()


def test_it_works_with_nothing_beside_it(python: Path) -> None:
    installed = run(python, "-m", "pip", "list", "--disable-pip-version-check", "--format=freeze")
    assert {line.partition("=")[0] for line in installed.split()} <= {"layby", "pip", "setuptools"}
    names = "import layby; missing = [n for n in layby.__all__ if not hasattr(layby, n)]"
    assert run(python, "-W", "error", "-c", f"{names}; print(missing)").strip() == "[]"
    assert "--link" in run(python, "-m", "layby", "--help")


PROJECT_OF_ONE_FILE = """
import django
from django.conf import settings
from django.core.management import call_command
from django.http import HttpResponse
from django.test import Client
from django.urls import path
import layby

async def view(request):
    await layby.sleep(0)
    return HttpResponse("parked nowhere")

urlpatterns = [path("", view)]
settings.configure(
    ALLOWED_HOSTS=["testserver"], INSTALLED_APPS=["layby.django"], ROOT_URLCONF=__name__
)
django.setup()
call_command("check")
print(Client().get("/").content)
"""


def test_its_django_app_works(python: Path, tmp_path: Path) -> None:
    django = pytest.importorskip("django")
    module = tmp_path / "site_of_one_file.py"
    module.write_text(PROJECT_OF_ONE_FILE)
    said = run(
        python,
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import site_of_one_file",
        # Django and what it needs; layby is not a folder there, but linked.
        PYTHONPATH=str(Path(django.__file__).parent.parent),
    )
    assert "no issues" in said
    assert "parked nowhere" in said
