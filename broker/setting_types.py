"""Types of settings that several tables of a config file share."""

import re
from datetime import date
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from broker.night_names import NIGHT, topic_of

# Strict: TOML has types of its own, so the text "4" or a `true` where a number belongs is a slip, not a spelling.
Bool = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, gt=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]*")


class SettingsTable(BaseModel):
    """A table of the file: frozen, and a key that it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_topic(topic: str) -> str:
    """The name, if it is one of a topic. Raises ValueError."""
    if "," in topic:
        raise ValueError("is a list in one text; write each topic as an item of its own")
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ValueError(
            "is not a topic name (letters, digits, '.', '_', '-', at most 249). Patterns are refused: brokers keep "
            "advertising dead topics and a checkpoint fails once a matched topic is gone; list the names, or write "
            f"{NIGHT} for the date of a topic per night"
        )
    return topic


def check_topics(topics: tuple[str, ...]) -> tuple[str, ...]:
    """Topics to be read, all of them by their names or all of them one per night. Raises ValueError."""
    for topic in topics:
        try:
            check_topic(topic_of(topic, date.max) if topic.count(NIGHT) == 1 else topic)
        except ValueError as error:
            raise ValueError(f"has {topic!r}, which {error}") from None
    if len(set(topics)) < len(topics):
        raise ValueError("names a topic twice")
    if len({NIGHT in topic for topic in topics}) > 1:
        raise ValueError(f"has topics with {NIGHT} and others; make two sources of them, each with its checkpoint")
    return topics


def check_slug(name: str) -> str:
    """The name, if it is fit for logs, folders and headers. Raises ValueError."""
    if not _SLUG.fullmatch(name):
        raise ValueError("needs small letters, digits, '-' and '_', and starts with a letter or digit")
    return name


def check_address(url: str | None) -> str | None:
    """The address of a registry, if it is one. Raises ValueError."""
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"needs http://HOST:PORT or https://HOST, and its path; {url!r} is not one")
    if parts.username or parts.password:
        raise ValueError("has a login in it; a registry is asked without one")
    return url.rstrip("/")
