"""Settings: from options, the environment (`ZIMAGE_*`) and `zimage-ui.toml`, in that order of weight.

The only reader of the environment in the package. Every field here is a row of the README's table (tested).
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from zimage_ui.errors import SettingsError
from zimage_ui.request import ImageFormat, Precision

ENV_PREFIX = "ZIMAGE_"
TOML_FILE = "zimage-ui.toml"
# What else names a compiler's folder, and that folder within the common one. Inductor tells Triton, but only when it
# compiles something itself, which may be never; the others are those of the extra `flash4`.
_COMPILE_CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "QUACK_CACHE_DIR": "quack",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash4",
    "CUTE_DSL_CACHE_DIR": "cute",
}
_LISTED = "The settings are listed in README.md; check the spelling."


class Settings(BaseSettings):
    """How one process runs. Frozen; made once by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        toml_file=TOML_FILE,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on; for now only this machine's own.")
    port: int = Field(7860, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model: str = Field(
        "auto",
        min_length=1,
        description="A folder in diffusers layout, a hub id, `auto`, or `fake` (no model at all).",
    )
    precision: Precision = Field(
        Precision.EXACT,
        description="Of matrix products: `exact`, or in half the memory `fp8` (RTX 40 and later; faster) or `int8` "
        "(RTX 20 and later), or in a third `nf4` (slower, and the furthest from exact).",
    )
    output_dir: Path = Field(Path("outputs"), description="Where pictures go.")
    image_format: ImageFormat = Field(ImageFormat.PNG, description="`png`, `jpeg` or `webp`, unless a request says.")
    queue_size: int = Field(32, ge=1, le=10_000, description="Jobs that may wait; one more is refused with 503.")
    saver_threads: int = Field(2, ge=1, le=16, description="Threads that encode pictures; one more writes them.")
    embedding_cache_mib: int = Field(256, ge=0, le=65_536, description="Memory for cached prompt embeddings.")
    telemetry_interval_s: float = Field(1.0, ge=0.1, le=60, description="Seconds between two looks at the machine.")
    language: str = Field("auto", pattern="^(auto|en|zh)$", description="Of the page: `auto` follows the browser.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="How much the log says.")

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        # Until the service can tell its users apart, an address that others reach would be open to all of them.
        if host == "localhost":
            return host
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError("only this machine's own addresses (127.0.0.1, ::1, localhost) can be bound for now")
        return host

    @field_validator("output_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options weigh most, then the environment, then `zimage-ui.toml` in the working folder."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(**options: Any) -> Settings:
    """Read the settings; options that are None do not count.

    Raises:
        SettingsError: a value cannot be used, a name is unknown, or the TOML file cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":  # its value may be anything, a secret of another program too
            where = "the options" if name in given else TOML_FILE
            raise SettingsError(f"There is no setting {name} in {where}.", _LISTED) from None
        raise SettingsError(
            f"Setting {name} = {first.get('input')!r} cannot be used: {first['msg'].removeprefix('Value error, ')}.",
            f"Change {ENV_PREFIX}{name.upper()}, --{name.replace('_', '-')} or {name} in {TOML_FILE}.",
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{TOML_FILE} cannot be read: {error}.", "Mend or remove the file.") from error
    unknown = sorted(set(_our_variables()) - set(Settings.model_fields))
    if unknown:
        names = ", ".join(ENV_PREFIX + name.upper() for name in unknown)
        raise SettingsError(f"There is no setting {names}.", _LISTED)
    return settings


def tame_third_parties() -> None:
    """Set what libraries read from the environment, unless it is set already; call before they are imported."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # torch's threads on a CPU spin for a while before they sleep. On two cores that also carry a browser, the default
    # made a picture take up to 20 times as long; a hundredth of it costs at most 5 % when nothing else runs (LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def user_cache_folder() -> Path:
    """Where this program may keep what it can make again: `zimage-ui` in `XDG_CACHE_HOME`, or in `~/.cache`."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "zimage-ui"


def choose_compile_cache(folder: Path | None) -> Path | None:
    """Let torch's and other compilers of kernels keep their work in `folder`, unless the person chose another one.

    To be called before they are imported: they look once.

    Args:
        folder: that nobody else may write to; None is no place for it.

    Returns:
        The folder where they keep it: the one of TORCHINDUCTOR_CACHE_DIR if that is set, which is for all of them.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    kept = Path(chosen) if chosen else folder
    if kept is None:
        # By themselves they would run whatever lies in the temporary folder, where anybody may have put it.
        os.environ.setdefault("QUACK_CACHE_ENABLED", "0")
        os.environ.setdefault("CUTE_DSL_DISABLE_FILE_CACHING", "1")
        return None
    if not chosen:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kept)
    for name, place in _COMPILE_CACHES.items():
        os.environ.setdefault(name, str(kept / place))
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    return kept


def visible_cuda_devices() -> str | None:
    """The value of `CUDA_VISIBLE_DEVICES`; None when it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _our_variables() -> list[str]:
    return [name.removeprefix(ENV_PREFIX).lower() for name in os.environ if name.startswith(ENV_PREFIX)]
