"""The topics that a template with {night} stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from broker.night_names import NIGHT as NIGHT  # outlets take it from here

OTHER = "other"  # in place of a date: nights that have no topic of their own
MAX_TOPICS_A_MONTH = 200
MONTH = 31
Nights = Mapping[str, Sequence[str]]  # by template: dates that have a topic


def expand(topics: Iterable[str], nights: Nights) -> list[str]:
    """Names of topics: each template as the topics of its nights, and the one of all others."""
    return [
        topic.replace(NIGHT, night)
        for topic in dict.fromkeys(topics)
        for night in ((*nights.get(topic, ()), OTHER) if NIGHT in topic else ("",))
    ]


def stands_for(template: str, topic: str) -> bool:
    """Whether a topic's name is one of those that a template stands for."""
    return NIGHT in template and re.fullmatch(_pattern(template), topic) is not None


def among(templates: Iterable[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By template, the nights whose topics are among these names, in order."""
    names = list(names)
    return {
        template: tuple(sorted(found[1] for name in names if (found := re.fullmatch(_pattern(template), name))))
        for template in templates
        if NIGHT in template
    }


def _pattern(template: str) -> str:
    start, _, end = template.partition(NIGHT)
    return rf"{re.escape(start)}(\d{{8}}){re.escape(end)}"
