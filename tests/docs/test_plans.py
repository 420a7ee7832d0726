"""`docs/plans.md`: its JSON is what its schema says, its code what the example runs."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any

import pytest
from documents import REPOSITORY, blocks
from jsonschema import Draft202012Validator, ValidationError

PAGE = REPOSITORY / "docs" / "plans.md"
SCHEMA: dict[str, Any] = json.loads((REPOSITORY / "docs" / "plan.schema.json").read_text())
SERVER = REPOSITORY / "examples" / "plans" / "server.js"


def of(name: str) -> Draft202012Validator:
    schema = {key: value for key, value in SCHEMA.items() if key != "oneOf"}
    return Draft202012Validator({**schema, "$ref": f"#/$defs/{name}"})


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_examples_are_a_plan_and_a_resume() -> None:
    plan, resume = (json.loads(block.text) for block in blocks(PAGE, "json"))
    of("plan").validate(plan)
    of("resume").validate(resume)
    of("results").validate({"results": resume["results"]})
    Draft202012Validator(SCHEMA).validate(plan)


@pytest.mark.parametrize(
    "plan",
    [
        {"fetches": []},
        {"fetches": [{}]},
        {"fetches": [{"url": "", "sleep": 1}]},
        {"fetches": [{"url": "", "method": "CONNECT"}]},
        {"fetches": [{"url": "", "body": "", "body_base64": ""}]},
        {"fetches": [{"sleep": -1}]},
        {"fetches": [{"sleep": 0}], "join": 0},
        {"fetches": [{"sleep": 0}], "colour": 1},
        *(
            {"fetches": [{"sleep": 0}], "resume": {"path": path}}
            for path in ("", "/a", "a/", "a//b", "..", "a/../b", "./a", "a?b", "a%2fb", "a;b", "ä")
        ),
    ],
    ids=json.dumps,
)
def test_what_the_gateway_refuses_is_not_valid(plan: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        of("plan").validate(plan)


def test_paths_that_only_look_like_others_are_valid() -> None:
    for path in ("a", "a/b", "...", ".a", "a.", "..a/b..", "a/.b", "A-Z_~0"):
        of("plan").validate({"fetches": [{"sleep": 0}], "resume": {"path": path}})


def test_the_code_for_node_is_that_of_the_example() -> None:
    (block,) = blocks(PAGE, "js")
    assert block.text in SERVER.read_text()


def test_the_signature_to_try_ones_own_by_is_right() -> None:
    text = PAGE.read_text()
    found = re.search(
        r"the secret `(.+?)`, the id `(.+?)`, the\s+path `(.+?)`, the body `(.+?)` and the expiry"
        r" `(.+?)`, the signature is\s+`(.+?)`",
        text,
    )
    assert found is not None
    secret, ident, path, body, expires, signature = found.groups()

    def sha256(what: str) -> str:
        return hashlib.sha256(what.encode()).hexdigest()

    state = sha256(json.loads(body)["state"])
    lines = ["layby-resume-v1", ident, path, state, sha256(body), expires]
    signed = "".join(f"{line}\n" for line in lines).encode()
    assert signature == "v1=" + hmac.new(secret.encode(), signed, "sha256").hexdigest()
