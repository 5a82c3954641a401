"""[[outlet]] and [outlet.filter]: who gets which verdicts, in which form.

What can be told from the file alone is checked here; what needs the model or the columns of a verdict, in `filters`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from broker.classes import BY_NAME
from broker.outlet_nights import MAX_TOPICS_A_MONTH, MONTH, NIGHT, expand, stands_for
from broker.setting_types import Bool, Number, SettingsTable, Share, check_slug, check_topic
from broker.sky import Vertices, read_polygon

Kind = Literal["json", "lasair", "hop", "fink", "elasticc", "fink-ai", "fastdb"]
SURVEYS_OF: Mapping[str, tuple[str, ...]] = {
    "fink": ("lsst", "ztf"),
    "fastdb": ("lsst",),
}  # a kind that is not here takes all surveys
STARTS: Mapping[str, str] = {"lasair": "anno_", "fink-ai": "fink_ai_"}  # what the readers find their topics by
HIDDEN_FROM_FINK = ("ftransfer_", "fxmatch_", "fink_ztf_")


class Cone(SettingsTable):
    """A circle on the sky, degrees."""

    ra: Annotated[float, Field(strict=True, ge=0, lt=360)]
    dec: Annotated[float, Field(strict=True, ge=-90, le=90)]
    radius_deg: Annotated[float, Field(strict=True, gt=0, le=180)]


class Polygon(SettingsTable):
    """A polygon on the sky: the file that it came from, and its vertices."""

    file: Path
    vertices: Vertices

    def __str__(self) -> str:
        return str(self.file)


class Filter(SettingsTable):
    """[outlet.filter]: a verdict passes where all conditions hold; a condition on a value that is missing does not.

    Magnitudes are AB, of the absolute difference flux of the alert's own source.
    """

    statuses: Annotated[tuple[Literal["classified", "abstained"], ...], Field(min_length=1)] = ("classified",)
    classes: tuple[str, ...] = ()
    min_probability: Share = 0.0
    bands: tuple[str, ...] = ()
    min_detections: Annotated[int, Field(strict=True, ge=0)] = 0
    max_detections: Annotated[int, Field(strict=True, ge=0)] | None = None
    brightest_mag: Number | None = None
    faintest_mag: Number | None = None
    cone: Cone | None = None
    polygon: Polygon | None = None
    where: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("classes")
    @classmethod
    def _known(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for name in classes:
            if name not in BY_NAME:
                raise ValueError(f"has {name!r}; the classes are {', '.join(BY_NAME)}")
        return classes

    @field_validator("polygon", mode="before")
    @classmethod
    def _file(cls, name: object, info: ValidationInfo) -> object:
        if not isinstance(name, str):
            return name
        file = Path((info.context or {}).get("folder", Path.cwd())) / Path(name).expanduser()
        try:
            return {"file": file, "vertices": read_polygon(file.read_text(encoding="utf-8"))}
        except OSError as error:
            raise ValueError(f"can't be read: {error.strerror}; it is a file beside this one") from error
        except ValueError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        pairs = (
            ("min_detections", self.min_detections, "max_detections", self.max_detections),
            ("brightest_mag", self.brightest_mag, "faintest_mag", self.faintest_mag),
        )
        for low, least, high, most in pairs:
            if least is not None and most is not None and least > most:
                raise ValueError(f"lets nothing through: {low} = {least} is above {high} = {most}")
        return self


class Outlet(SettingsTable):
    """[[outlet]]: one form of the verdicts, on a topic of its own; `{survey}` in the topic's name is filled in.

    `{class}` too, by the class's slug: filter.classes says which there are, and only what is classified goes there; and
    `{night}`, the date of the night of observation.

    `sources` are the names of the sources whose verdicts go there, all if none is given; `public_only` holds back ZTF's
    alerts of other programs than the public one. `class_name`: fink-ai only, the class whose probability is sent.
    `fields`: json only, of the alert, to be carried through, such as `diaObject.ra`.
    """

    name: str
    kind: Kind
    topic: str
    sources: tuple[str, ...] = ()
    public_only: Bool = True
    class_name: str | None = None
    fields: tuple[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")], ...] = ()
    filter: Filter = Filter()

    _slug = field_validator("name")(check_slug)

    @field_validator("kind", mode="before")
    @classmethod
    def _no_second_native(cls, kind: object) -> object:
        if kind in ("native", "dead-letters", "dead_letters"):
            raise ValueError(
                "stands in [output]: classifications and dead letters carry every verdict, so they take no filter"
            )
        return kind

    @field_validator("topic")
    @classmethod
    def _name(cls, topic: str) -> str:
        try:
            check_topic(topic.format_map({"survey": "elasticc", "class": "eclipsing-binary", "night": "20261120"}))
        except (KeyError, IndexError, ValueError) as error:
            reason = str(error) if type(error) is ValueError and "topic name" in str(error) else ""
            raise ValueError(
                reason or "has an unknown name in braces; {survey}, {class} and {night} are filled in"
            ) from None
        if topic.count(NIGHT) > 1:
            raise ValueError("has {night} twice")
        return topic

    @model_validator(mode="after")
    def _of_this_kind(self) -> Self:
        start = STARTS.get(self.kind, "")
        if not self.topic.startswith(start):
            raise ValueError(f"needs a topic that starts with {start!r}, by which its readers find it")
        if self.kind == "fink" and self.topic.replace("{survey}", "ztf").startswith(HIDDEN_FROM_FINK):
            raise ValueError(f"has a topic that fink-client hides: it starts with one of {', '.join(HIDDEN_FROM_FINK)}")
        if (self.kind == "fink-ai") != (self.class_name is not None):
            raise ValueError("needs class_name, whose probability is sent, if kind = 'fink-ai', and has none otherwise")
        if self.fields and self.kind != "json":
            raise ValueError("has fields to carry through, for which only json has a place")
        if self.class_name is not None and self.class_name not in BY_NAME:
            raise ValueError(f"has class_name {self.class_name!r}; the classes are {', '.join(BY_NAME)}")
        if self.is_by_class and (not self.filter.classes or self.filter.statuses != ("classified",)):
            raise ValueError("has {class} in its topic, so it needs filter.classes and statuses = ['classified']")
        return self

    @property
    def is_by_class(self) -> bool:
        """Whether each class has a topic of its own."""
        return "{class}" in self.topic

    def topics_of(self, survey: str) -> dict[str, str]:
        """Topics for the verdicts of a survey, by class; one under "" where all classes share it. {night} stays."""
        classes = self.filter.classes if self.is_by_class else ("",)
        slugs = {name: BY_NAME[name].slug if name else "" for name in classes}
        return {
            name: self.topic.format_map({"survey": survey, "class": slug, "night": NIGHT})
            for name, slug in slugs.items()
        }

    def takes(self, source: str) -> bool:
        """Whether verdicts of this source go there."""
        return not self.sources or source in self.sources


def check_outlets(outlets: Sequence[Outlet], surveys: Mapping[str, str], read: set[str], written: set[str]) -> None:
    """Check outlets against the rest of the file: surveys by source, topics that are read and written otherwise.

    Raises ValueError.
    """
    for one, other in combinations(outlets, 2):
        if one.name == other.name:
            raise ValueError(f"two outlets are called {one.name!r}; each needs a name of its own")
    owners: dict[str, str] = {}
    for outlet in outlets:
        if unknown := sorted(set(outlet.sources) - surveys.keys()):
            known = ", ".join(surveys)
            raise ValueError(f"outlet {outlet.name!r}: no source is called {unknown[0]!r}; they are {known}")
        mine = {survey for source, survey in surveys.items() if outlet.takes(source)}
        wrong = sorted(mine - set(SURVEYS_OF.get(outlet.kind, tuple(mine))))
        if wrong:
            raise ValueError(
                f"outlet {outlet.name!r}: {outlet.kind} has no form for alerts of {wrong[0]}; leave that source out of "
                "its `sources`"
            )
        topics = {topic for survey in mine for topic in outlet.topics_of(survey).values()}
        if outlet.kind == "fink" and len(mine) > 1 and "{survey}" not in outlet.topic:
            raise ValueError(
                f"outlet {outlet.name!r}: fink-client reads one survey per topic; put {{survey}} into the topic's name"
            )
        n_a_month = MONTH * len(topics) if NIGHT in outlet.topic else 0
        if n_a_month > MAX_TOPICS_A_MONTH:
            raise ValueError(
                f"outlet {outlet.name!r}: {outlet.topic!r} opens {n_a_month} topics a month, {len(topics)} a night; "
                f"at most {MAX_TOPICS_A_MONTH}: leave out {{night}}, {{class}} or {{survey}}, or name fewer classes"
            )
        nightly = [t for t in (*topics, *owners) if NIGHT in t]
        for topic in sorted(read | written | topics | owners.keys()):
            if template := next((t for t in nightly if stands_for(t, topic) or expand([t], {}) == [topic]), None):
                raise ValueError(f"outlet {outlet.name!r}: topic {topic!r} is also one of {template!r}")
        for topic in sorted(topics):
            taken = "read by a source: a loop" if topic in read else "written by [output]" if topic in written else None
            taken = taken or (f"written by outlet {owners[topic]!r}" if topic in owners else None)
            if taken:
                raise ValueError(f"outlet {outlet.name!r}: topic {topic!r} is {taken}; each outlet needs its own")
            owners[topic] = outlet.name


def outlets_of(outlets: Sequence[Outlet], source: str) -> list[Outlet]:
    """The outlets that verdicts of a source go to."""
    return [outlet for outlet in outlets if outlet.takes(source)]


def topics_of(outlets: Sequence[Outlet], surveys: Mapping[str, str]) -> list[str]:
    """All topics of the outlets, {night} left as it is; surveys by name of source."""
    pairs = ((outlet, survey) for source, survey in surveys.items() for outlet in outlets_of(outlets, source))
    return list(dict.fromkeys(topic for outlet, survey in pairs for topic in outlet.topics_of(survey).values()))
