import os
import re
from pathlib import Path

import pytest

from zimage_ui.errors import SettingsError
from zimage_ui.request import ImageFormat
from zimage_ui.settings import Settings, choose_compile_cache, load_settings, user_cache_folder

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in list(os.environ):
        if name.startswith("ZIMAGE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_listen_on_this_machine_alone():
    settings = load_settings()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 7860, "auto")
    assert settings.output_dir == Path.cwd() / "outputs"


def test_options_weigh_more_than_the_environment_and_that_more_than_the_file(monkeypatch, tmp_path):
    (tmp_path / "zimage-ui.toml").write_text('port = 1111\nmodel = "from-file"\nimage_format = "webp"\n')
    monkeypatch.setenv("ZIMAGE_PORT", "2222")
    monkeypatch.setenv("ZIMAGE_MODEL", "from-environment")
    settings = load_settings(port=3333, model=None)
    assert (settings.port, settings.model, settings.image_format) == (3333, "from-environment", ImageFormat.WEBP)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.20", "::", "example.org", ""])
def test_addresses_that_others_reach_are_refused(host):
    with pytest.raises(SettingsError) as error:
        load_settings(host=host)
    assert repr(host) in error.value.message
    assert "ZIMAGE_HOST" in error.value.hint


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_addresses_of_this_machine_are_taken(host):
    assert load_settings(host=host).host == host


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ZIMAGE_PORT", "70000"), ("ZIMAGE_PORT", "x"), ("ZIMAGE_QUEUE_SIZE", "0"), ("ZIMAGE_LANGUAGE", "tlh"),
        ("ZIMAGE_IMAGE_FORMAT", "bmp"), ("ZIMAGE_TELEMETRY_INTERVAL_S", "0"), ("ZIMAGE_SAVER_THREADS", "-1"),
    ],
)  # fmt: skip
def test_a_bad_value_is_told_with_its_name_and_itself(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert value in error.value.message
    assert name in error.value.hint


def test_a_misspelt_variable_is_told(monkeypatch):
    monkeypatch.setenv("ZIMAGE_OUTPUTDIR", "/tmp/x")
    with pytest.raises(SettingsError, match="ZIMAGE_OUTPUTDIR"):
        load_settings()


def test_a_misspelt_name_in_the_file_is_told(tmp_path):
    (tmp_path / "zimage-ui.toml").write_text('prot = "not to be shown"\n')
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert refused.value.message == "There is no setting prot in zimage-ui.toml."
    assert "README.md" in refused.value.hint
    assert "not to be shown" not in str(refused.value)


def test_a_file_that_is_not_toml_is_told(tmp_path):
    (tmp_path / "zimage-ui.toml").write_text("port = = 1\n")
    with pytest.raises(SettingsError, match=re.escape("zimage-ui.toml cannot be read")):
        load_settings()


def test_folders_become_absolute_and_home_is_expanded():
    settings = load_settings(output_dir=Path("~/pictures"))
    assert settings.output_dir == Path.home() / "pictures"
    assert load_settings(output_dir=Path("here")).output_dir == Path.cwd() / "here"


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_the_readme_lists_every_setting_with_its_default_and_meaning():
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = {
        match["name"]: (match["default"], match["text"])
        for match in re.finditer(
            r"^\| `(?P<name>ZIMAGE_\w+)` \| `(?P<default>[^`]*)` \| (?P<text>.*) \|$", readme, re.M
        )
    }
    assert set(rows) == {f"ZIMAGE_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = getattr(field.default, "value", field.default)
        assert rows[f"ZIMAGE_{name.upper()}"] == (str(default), field.description)


@pytest.mark.parametrize(
    ("chosen", "expected"), [("/var/cache/ann", "/var/cache/ann/zimage-ui"), ("", None), ("not/absolute", None)]
)
def test_the_cache_folder_is_the_users(monkeypatch, tmp_path, chosen, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", chosen)
    assert user_cache_folder() == Path(expected or tmp_path / ".cache" / "zimage-ui")


def test_every_compiler_keeps_its_work_where_the_person_wants_torchs(compilers_environment, tmp_path):
    """By themselves those of the extra run code from the temporary folder, where anybody may put it."""
    chosen = f"{tmp_path}/mine/"
    compilers_environment["TORCHINDUCTOR_CACHE_DIR"] = chosen
    assert choose_compile_cache(tmp_path / "ours") == tmp_path / "mine"
    assert choose_compile_cache(None) == tmp_path / "mine"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == chosen
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "mine" / "triton")
    assert os.environ["QUACK_CACHE_DIR"] == str(tmp_path / "mine" / "quack")
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(tmp_path / "mine" / "flash4")
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "1"
    assert os.environ["CUTE_DSL_CACHE_DIR"] == str(tmp_path / "mine" / "cute")
    assert "QUACK_CACHE_ENABLED" not in os.environ


def test_without_a_place_nothing_is_kept_where_anybody_may_write(compilers_environment):
    before = dict(compilers_environment)
    assert choose_compile_cache(None) is None
    assert compilers_environment == before | {"QUACK_CACHE_ENABLED": "0", "CUTE_DSL_DISABLE_FILE_CACHING": "1"}


def test_a_compile_cache_is_chosen_unless_the_person_chose_one(compilers_environment, tmp_path):
    compilers_environment["TORCHINDUCTOR_CACHE_DIR"] = ""
    compilers_environment["QUACK_CACHE_DIR"] = "/chosen"
    compilers_environment["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] = "0"
    assert choose_compile_cache(tmp_path) == tmp_path
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    assert os.environ["QUACK_CACHE_DIR"] == "/chosen"
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(tmp_path / "flash4")
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "0"
    assert choose_compile_cache(tmp_path / "other") == tmp_path
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
