from __future__ import annotations

import gzip
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi import FastAPI

from zimage_ui.web.assets import Asset, assets_router, own_assets

if TYPE_CHECKING:
    from tests.web.conftest import Serve


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("assets")
    (folder / "studio.css").write_text("body { color: red }\n" * 100)
    (folder / "studio.js").write_text("const fox = '狐';\n" * 100)
    (folder / "logo.png").write_bytes(b"\x89PNG" + bytes(100))
    app = FastAPI()
    app.include_router(assets_router([Asset(path.name, path) for path in folder.iterdir()]), prefix="/assets")

    @app.get("/assets/{rest:path}")
    async def the_pages_own(rest: str) -> str:
        return f"gradio's {rest}"

    with serve(app) as server, httpx.Client(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("studio.css", "text/css; charset=utf-8"),
        ("studio.js", "text/javascript; charset=utf-8"),
        ("logo.png", "image/png"),
    ],
)
def test_assets_have_their_type(client: httpx.Client, name: str, media_type: str) -> None:
    response = client.get(f"/assets/{name}")

    assert response.status_code == 200
    assert response.headers["content-type"] == media_type


def test_text_is_compressed_for_whoever_takes_it(client: httpx.Client) -> None:
    plain = client.get("/assets/studio.js", headers={"Accept-Encoding": "identity"})
    with client.stream("GET", "/assets/studio.js", headers={"Accept-Encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())

    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 5


def test_pictures_are_not_compressed_again(client: httpx.Client) -> None:
    assert "content-encoding" not in client.get("/assets/logo.png", headers={"Accept-Encoding": "gzip"}).headers


def test_an_address_with_a_version_is_kept_for_ever_and_another_asked_for(client: httpx.Client) -> None:
    assert "immutable" in client.get("/assets/studio.css?v=1").headers["cache-control"]
    assert client.get("/assets/studio.css").headers["cache-control"] == "no-cache"


def test_what_the_browser_has_is_not_sent_again(client: httpx.Client) -> None:
    etag = client.get("/assets/studio.css").headers["etag"]
    assert client.get("/assets/studio.css", headers={"If-None-Match": etag}).status_code == 304
    assert client.get("/assets/studio.css", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_rest_is_left_to_the_page(client: httpx.Client) -> None:
    assert client.get("/assets/index-abc.js").json() == "gradio's index-abc.js"
    assert "gradio" in client.get("/assets/../secret").text or client.get("/assets/../secret").status_code == 404


def test_our_own_assets_are_the_folders_files_and_plotly() -> None:
    assets = {asset.name: asset for asset in own_assets()}

    folder = Path(__file__).parents[2] / "zimage_ui" / "ui" / "assets"
    expected = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}
    assert set(assets) == expected | {"plotly.min.js"}
    plotly = assets["plotly.min.js"]
    assert plotly.media_type == "text/javascript"
    assert b"plotly.js" in plotly.data[:200]
    assert plotly.compressed is not None
    assert len(plotly.compressed) < len(plotly.data) / 2


def test_types_do_not_hang_on_the_table_of_the_process() -> None:
    """Gradio, when it makes its application, rewrites the table of the whole process."""
    mimetypes.add_type("application/javascript", ".js")
    try:
        scripts = [asset for asset in own_assets() if asset.name.endswith(".js")]
        assert {asset.media_type for asset in scripts} == {"text/javascript"}
        assert all(asset.compressed is not None for asset in scripts)
    finally:
        mimetypes.add_type("text/javascript", ".js")


def test_every_kind_of_file_that_we_ship_has_a_type() -> None:
    assert "application/octet-stream" not in {asset.media_type for asset in own_assets()}
