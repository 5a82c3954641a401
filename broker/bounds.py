"""Notes of how far the output topics reached before a batch wrote to them, kept in the checkpoint folder.

A note is taken in this order: first the end offsets, then the newest batch that has an entry in `offsets/`. A batch
writes only once it has that entry, so every later batch writes at or behind these ends, whenever the note was taken.
It lies in `outputs/N`, N being the first of those later batches.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from broker import checkpoint

_log = logging.getLogger(__name__)

FOLDER = "outputs"
KEPT = 4  # the newest may be of the batch after the unfinished one, so two would do
Ends = Mapping[str, Mapping[int, int]]  # end offset by output topic and partition


def write(folder: Path, ends: Ends) -> int:
    """Note, in a checkpoint, end offsets that were read before this call; the first batch that they hold for.

    Raises OSError.
    """
    planned = checkpoint.newest_planned(folder)
    first = 0 if planned is None else planned + 1
    notes = folder / FOLDER
    notes.mkdir(parents=True, exist_ok=True)
    new = notes / ".new"  # one job at a time: nobody else writes it
    new.write_text(json.dumps({"outputs": 1, "ends": ends}), encoding="utf-8")
    new.replace(notes / str(first))
    for old in _numbers(notes)[:-KEPT]:
        with suppress(FileNotFoundError):
            (notes / str(old)).unlink()
    return first


def find(folder: Path, batch: int) -> Ends | None:
    """Ends that the output topics had before this batch wrote, by the newest note that holds for it; None without."""
    notes = folder / FOLDER
    for number in reversed(_numbers(notes)):
        if number > batch:
            continue
        path = notes / str(number)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["outputs"] != 1:
                raise ValueError(f"version {found['outputs']!r}")
            return {topic: {int(p): int(end) for p, end in ends.items()} for topic, ends in found["ends"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s: not a note of end offsets, an older one must do: %s", path, error)
    return None


def _numbers(notes: Path) -> list[int]:
    return sorted(int(path.name) for path in notes.iterdir() if path.name.isdigit()) if notes.is_dir() else []
