"""What Azure's refusals mean, by their codes and by their HTTP status."""

from __future__ import annotations

import pytest

from dask_cloudvm.clouds import azure_errors


def error(code, status=400, message="no", **more):
    return azure_errors.refused({"error": {"code": code, "message": message, **more}}, status, "try")


@pytest.mark.parametrize(
    ("code", "status", "gone", "taken"),
    [
        ("ResourceNotFound", 404, True, False),
        ("PlatformImageNotFound", 404, True, False),
        ("RoleDefinitionDoesNotExist", 404, True, False),
        ("SubscriptionNotFound", 404, False, False),
        ("ResourceNotFound", 400, True, False),
        ("PreconditionFailed", 412, False, True),
        ("ConditionNotMet", 412, False, True),
        ("Conflict", 409, False, False),
    ],
)
def test_what_is_gone_or_taken_is_known_by_the_status_too(code, status, gone, taken):
    it = error(code, status)
    assert (azure_errors.gone(it), azure_errors.taken(it)) == (gone, taken)


def test_an_answer_that_is_no_json_has_its_status():
    assert azure_errors.gone(azure_errors.refused("<html>", 404, "try"))
