"""The OpenAPI document held against the server by schemathesis: every request gets an answer that it names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from tests.abuse.conftest import examples
from tests.abuse.limits import patience
from tests.abuse.test_fuzz_http import TONE
from tests.runtimes.server.conftest import running

from qwen3asr import Recognizer
from qwen3asr.server import ServerSettings

KEY = "correct-horse"
OPERATIONS = (
    "POST /v1/audio/transcriptions", "POST /v1/audio/alignments", "GET /v1/models", "GET /v1/models/{name}",
    "GET /health", "GET /ready", "GET /metrics",
)  # fmt: skip
CASES = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS] + [
    (operation, GenerationMode.NEGATIVE)
    for operation in OPERATIONS
    if "/v1/" in operation  # the others take nothing
]
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance, unsupported_method, ignored_auth,
]  # fmt: skip

schemathesis.openapi.format("binary", st.sampled_from([TONE, TONE[:50], b""]) | st.binary(max_size=60))


@pytest.fixture(scope="module")
def document(model: Recognizer) -> Iterator[schemathesis.BaseSchema]:
    with running(model, ServerSettings(api_keys=(KEY,))) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_document_names_every_operation(document: schemathesis.BaseSchema) -> None:
    """What is added to the server and not named here is not tested."""
    assert {operation.ok().label for operation in document.get_all_operations()} == {*OPERATIONS}


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_every_operation_answers_as_it_says(
    document: schemathesis.BaseSchema, operation: str, mode: GenerationMode
) -> None:
    """Valid requests and invalid ones; what is refused is refused as the document says.

    That all of the invalid ones are refused is not asked: a number is a text in a form.
    """
    method, path = operation.split()

    @examples(40)
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def holds(case: schemathesis.Case) -> None:
        with patience(30):
            case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS)

    holds()
