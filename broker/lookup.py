"""[registry]: where writer schemas come from that the package lacks."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from broker.setting_types import check_address


class Lookup(BaseModel):
    """[registry]: a registry with Confluent's interface, read only and without login; no url, no registry.

    All versions of `subjects` are asked for every `refresh_s`, so that a schema is known before its first alert. What
    was fetched stays in the folder `cache`; if that is not given, in the cache of downloads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = None
    subjects: tuple[str, ...] = ()
    refresh_s: Annotated[float, Field(strict=True, ge=1, le=86_400)] = 60.0
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=600)] = 10.0
    cache: Path | None = None

    _is_address = field_validator("url")(check_address)

    @field_validator("cache", mode="before")
    @classmethod
    def _beside_the_config(cls, folder: object, info: ValidationInfo) -> object:
        if not isinstance(folder, str):
            return folder
        if not folder:
            raise ValueError("is empty; leave it out to use the cache of downloads")
        return Path((info.context or {}).get("folder", Path.cwd())) / Path(folder).expanduser()
