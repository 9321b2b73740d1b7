"""Responses conform to the OpenAPI document, for valid and invalid requests."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving import Server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SETTINGS = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def test_every_operation(server: Server) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = 0
    for operation in document.get_all_operations():
        assert isinstance(operation, Ok)
        case = operation.ok().as_strategy()

        @SETTINGS
        @given(case=case)
        def conforms(case: Case[Any]) -> None:
            case.call_and_validate(checks=CHECKS)

        conforms()
        tried += 1
    assert tried == 12
    while videos := server.client.get("/v1/videos?limit=100").json()["data"]:
        for video in videos:
            server.client.delete(f"/v1/videos/{video['id']}")
