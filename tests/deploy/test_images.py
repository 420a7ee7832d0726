"""The Dockerfiles: what they copy is there, and what they start is what it should be.

That they build is shown by `make image`, for the gateway's; the others need images that only a
registry has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from deployed import DEPLOY, check, instructions
from support.places import REPOSITORY

DOCKERFILES = sorted(DEPLOY.rglob("*Dockerfile"))
# What Docker's reference has, and we might use.
KNOWN = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "EXPOSE", "USER", "HEALTHCHECK", "ENTRYPOINT"}
KNOWN |= {"CMD", "STOPSIGNAL"}
IDS = [str(path.relative_to(DEPLOY)) for path in DOCKERFILES]


def last(dockerfile: Path, name: str) -> str:
    return [rest for each, rest in instructions(dockerfile) if each == name][-1]


def test_there_are_three() -> None:
    assert set(IDS) == {"Dockerfile", "django.Dockerfile", "compose/shop.Dockerfile"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=IDS)
def test_it_is_understood_and_its_user_is_nobody(dockerfile: Path) -> None:
    assert {name for name, _ in instructions(dockerfile)} <= KNOWN
    assert last(dockerfile, "USER") in ("65532", "65532:65532")
    # A number, as Kubernetes cannot tell of a name that it is not root.
    command = json.loads(last(dockerfile, "CMD"))
    assert command


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=IDS)
def test_no_image_is_taken_without_a_version(dockerfile: Path) -> None:
    for name, rest in instructions(dockerfile):
        if name == "FROM" and rest != "scratch":
            assert re.match(r"\w+:\d+\.\d+", rest), rest


@pytest.mark.parametrize(
    "dockerfile",
    [path for path in DOCKERFILES if path.name != "django.Dockerfile"],
    ids=lambda path: path.name,
)
def test_everything_that_is_copied_is_in_the_repository(dockerfile: Path) -> None:
    copied = [rest.split() for name, rest in instructions(dockerfile) if name == "COPY"]
    for words in copied:
        if not any(word.startswith("--from=") for word in words):
            for source in words[:-1]:
                assert (REPOSITORY / source).exists(), source


def test_the_build_has_all_that_cargo_wants_to_see() -> None:
    """A crate is not built if a file is missing that its manifest names."""
    manifest = (REPOSITORY / "Cargo.toml").read_text()
    copied = [rest for name, rest in instructions(DEPLOY / "Dockerfile") if name == "COPY"]
    for target in re.findall(r'\[\[bench\]\]\nname = "(\w+)"', manifest):
        assert any(f"benches/{target}.rs" in each for each in copied), target


def test_the_health_checks_are_commands_that_there_are() -> None:
    for name in ("Dockerfile", "django.Dockerfile"):
        command = json.loads(last(DEPLOY / name, "HEALTHCHECK").partition("CMD ")[2])
        assert [Path(command[0]).name, *command[1:]] == ["layby", "health"]


def test_the_image_of_an_application_starts_with_what_it_says() -> None:
    """`layby check` takes the arguments of `layby run`."""
    dockerfile = DEPLOY / "django.Dockerfile"
    command = json.loads(last(dockerfile, "CMD"))
    assert command[:2] == ["layby", "run"]
    variables = dict(
        word.split("=", 1)
        for name, rest in instructions(dockerfile)
        if name == "ENV"
        for word in rest.split()
    )
    layby = {name: value for name, value in variables.items() if name.startswith("LAYBY_")}
    status, said = check(*command[2:], **layby)
    assert status == 0, said
    assert "warning" not in said
    assert 'listen = ["0.0.0.0:8000"]' in said
