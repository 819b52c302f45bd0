from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from zimage_ui import errors
from zimage_ui.web.errors import SafeJSONResponse, error_response, status_of

EXPECTED_STATUS = {
    errors.ZImageError: 500,
    errors.SettingsError: 500,
    errors.InvalidRequestError: 400,
    errors.QueueFullError: 503,
    errors.NotReadyError: 503,
    errors.JobCancelledError: 409,
    errors.ModelError: 500,
    errors.ModelNotFoundError: 500,
    errors.ModelDownloadError: 500,
    errors.ModelDamagedError: 500,
    errors.GenerationError: 500,
    errors.DeviceMemoryError: 500,
    errors.DeviceLostError: 500,
    errors.StorageError: 507,
    errors.OutputFolderError: 507,
    errors.PictureNotFoundError: 404,
}


def tree(root: type[errors.ZImageError]) -> Iterator[type[errors.ZImageError]]:
    if root.__module__ == "zimage_ui.errors":
        yield root
        for child in root.__subclasses__():
            yield from tree(child)


def test_the_table_knows_the_whole_tree() -> None:
    assert set(tree(errors.ZImageError)) == set(EXPECTED_STATUS)


@pytest.mark.parametrize(("kind", "status"), EXPECTED_STATUS.items())
def test_every_error_has_its_status_and_the_one_shape(kind: type[errors.ZImageError], status: int) -> None:
    error = kind("It broke.", "Mend it.")

    response = error_response(error)

    assert status_of(error) == response.status_code == status
    body = json.loads(bytes(response.body))
    assert set(body) == {"error"}
    assert body["error"] == {
        "message": "It broke. Mend it.",
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": None,
        "code": kind.code,
    }
    again = "retry-after" in response.headers
    assert again == (status == 503)
    assert ("x-should-retry" in response.headers) == (not again)


def test_the_field_at_fault_is_named() -> None:
    body = json.loads(bytes(error_response(errors.InvalidRequestError("No.", param="size")).body))

    assert body["error"]["param"] == "size"


def test_half_characters_in_a_message_do_not_break_the_answer() -> None:
    response = error_response(errors.StorageError("cannot read bad\udcff.png"))

    assert json.loads(bytes(response.body))["error"]["message"] == "cannot read bad\udcff.png"


def test_what_json_cannot_say_is_not_said() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        SafeJSONResponse({"number": float("nan")})
