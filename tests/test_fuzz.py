"""What `make fuzz` has found, each value minimised: none of them gets the better of a reader again."""

import time
from pathlib import Path

import generate
import pytest
from fuzzing import check

from broker import surveys

FINDS = sorted((Path(__file__).parent / "finds").iterdir())


@pytest.mark.parametrize("find", FINDS, ids=lambda path: path.name)
def test_a_find_is_harmless_now(find: Path) -> None:
    started = time.process_time()
    check(find.read_bytes())
    assert time.process_time() - started < 10


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_sound_alerts_are_read_and_damaged_ones_are_not(survey: str) -> None:
    """Else the test above, and hours of fuzzing, would prove nothing."""
    for label in generate.LABELS[survey]:
        sound = generate.generated(survey, label, 1)[0]
        assert check(sound) == {survey}
        assert check(sound[:-1]) == check(sound + b"x") == set()
