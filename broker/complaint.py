"""What is wrong with a settings file, in the file's own words: table, key, value, what is allowed."""

import difflib
import re
from collections.abc import Mapping
from datetime import date
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

MASK = "********"
_SECRET = re.compile(r"password|secret|token|credential|jaas|sasl\.username|ssl\.key\.|keystore\.key$", re.IGNORECASE)
_LOGIN = re.compile(r"//[^/\s]*@")  # in an address
_WORDS = (
    (r"^(Value error|Assertion failed), ", ""),
    (r"^Input should", "should"),
    (r"^String should", "should"),
    (r"a valid tuple", "a list"),
    (r"a valid dictionary( or instance of \w+)?", "a table"),
    (r"a valid boolean", "true or false"),
    (r"a valid integer.*", "a whole number"),
    (r"a valid string", "text in quotes"),
    (r"^Tuple should have at least 1 item.*", "should have at least one item"),
)


def is_secret(key: str) -> bool:
    """Whether a setting's value must not be shown; `...location` and `...url` say where one is, which may be."""
    return bool(_SECRET.search(key)) and not key.endswith((".location", ".url"))


def tell(detail: ErrorDetails, model: type[BaseModel], data: Mapping[str, Any]) -> str:
    """One line about one mistake that pydantic found in `data`, a file's tables read into `model`."""
    loc = detail["loc"]
    if detail["type"] in ("extra_forbidden", "missing"):
        return _about_key(detail, model, data)
    message = detail["msg"]
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    depth = 2 if len(loc) > 1 and isinstance(loc[1], int) else 1
    keys = [str(part) for part in loc[depth:] if isinstance(part, str)]
    if not keys:
        return f"{_table(loc, data)} {message}".strip()
    hidden = any(is_secret(key) or key.endswith("_env") for key in keys)
    value = MASK if hidden else _LOGIN.sub(rf"//{MASK}@", _show(detail["input"]))
    return f"{_table(loc, data)} {'.'.join(keys)} = {value}: {message}"


def _about_key(detail: ErrorDetails, model: type[BaseModel], data: Mapping[str, Any]) -> str:
    """A misspelt or missing key; its value is never shown, since it may be a secret in the wrong place."""
    loc = detail["loc"]
    what, key = ("table", f"[{loc[0]}]") if len(loc) == 1 else ("key", repr(str(loc[-1])))
    where = "the file" if len(loc) == 1 else _table(loc, data)
    if detail["type"] == "missing":
        return f"{where} lacks the {what} {key}, which must be given"
    allowed = _keys(model, loc)
    inside = [str(part) for part in loc[1:-1] if isinstance(part, str)]
    where = " ".join([where, *inside])
    close = difflib.get_close_matches(str(loc[-1]), allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{where} has an unknown {what} {key}: {hint}allowed are {', '.join(allowed)}"


def _keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Spellings allowed in the table that `loc` ends in."""
    names = {field.alias or name: field for name, field in model.model_fields.items()}
    if len(loc) == 1:
        return list(names)
    for part in loc[:-1]:
        if isinstance(part, str):
            inner = names[part].annotation
            found = (kind for kind in (inner, *get_args(inner)) if isinstance(kind, type))
            table = next(kind for kind in found if issubclass(kind, BaseModel))
            names = {field.alias or name: field for name, field in table.model_fields.items()}
    return list(names)


def _table(loc: tuple[int | str, ...], data: Mapping[str, Any]) -> str:
    if not loc:
        return ""
    if len(loc) == 1 or not isinstance(loc[1], int):
        return f"[{loc[0]}]"
    row = data[str(loc[0])][loc[1]]
    name = row.get("name") if isinstance(row, Mapping) else None
    return f"[[{loc[0]}]] {name!r}" if isinstance(name, str) else f"[[{loc[0]}]] number {loc[1] + 1}"


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} = {MASK if is_secret(str(key)) else _show(item)}" for key, item in value.items())
        text = f"{{{text}}}"
    else:
        text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
