"""[service]: how long the job goes on by itself, and where it tells how it is."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

Seconds = Annotated[float, Field(strict=True, gt=0, le=604_800)]


class Upkeep(BaseModel):
    """[service]: restarts of a failed query, counted per source, and the health file (none is written if not given).

    `restarts` within `restart_window_s` are allowed; `kafka_away_s` is how long a source waits for Kafka to come back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    restarts: Annotated[int, Field(strict=True, ge=0, le=1000)] = 10
    restart_window_s: Seconds = 600.0
    kafka_away_s: Seconds = 3600.0
    health_file: Path | None = None

    @field_validator("health_file", mode="before")
    @classmethod
    def _beside_the_config(cls, file: object, info: ValidationInfo) -> object:
        if not isinstance(file, str | Path):
            return file
        if not str(file):
            raise ValueError("is empty; leave it out to have none written")
        return Path((info.context or {}).get("folder", Path.cwd())) / Path(file).expanduser()
