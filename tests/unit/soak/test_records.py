"""The examination of recorded messages finds what is lost, repeated in secret, repeated too late or overtaken."""

import numpy as np
import pytest

from tests.soak.records import GOT, MARK, RECORD, examine, load


def rows(*entries, at=0):
    """Rows from (number, key, redelivered) or None for a mark, at rising times."""
    return np.array(
        [
            (at + i, 0, 0, 0, MARK, 0) if e is None else (at + i, e[0], e[1], 0, GOT, e[2])
            for i, e in enumerate(entries)
        ],
        RECORD,
    )


def violations(*files, sent=4, victim=0, window=8):
    return examine(files, victim, [sent], window, keyed=True).violations


VICTIM = rows((0, 1, 0), None, (1, 2, 0))  # killed with number 1 recorded and not acknowledged
HEIR = rows((1, 2, 1), (2, 1, 0), (3, 2, 0), None, at=10)


def test_flagged_repeat_of_what_was_not_acknowledged_is_right():
    assert violations(VICTIM, HEIR) == []


@pytest.mark.parametrize(
    ("heir", "found"),
    [
        (rows((1, 2, 1), (3, 2, 0), None, at=10), "1 lost, first [2]"),
        (rows((1, 2, 1), (2, 1, 0), (3, 2, 0), (9, 2, 0), at=10), "1 never sent: [9]"),
        (rows((1, 2, 0), (2, 1, 0), (3, 2, 0), at=10), "1 repeats are not flagged"),
        (
            rows((0, 1, 1), (1, 2, 1), (2, 1, 0), (3, 2, 0), at=10),
            "1 repeats of acknowledged messages",
        ),
        (rows((2, 1, 0), (3, 2, 0), at=10), "1 unacknowledged messages did not come again"),
        (rows((1, 2, 1), (3, 2, 0), (2, 2, 0), at=10), "1 messages overtook one of their key"),
    ],
)
def test_violation_is_found(heir, found):
    assert found in " ".join(violations(VICTIM, heir))


def test_key_that_moves_on_too_early_is_found():
    early = rows((2, 1, 0), at=5)
    late = rows((1, 1, 0), (3, 2, 0), at=10)
    assert "overtook" in " ".join(violations(rows((0, 1, 0), None), early, late))


def test_more_unacknowledged_than_the_window_is_found():
    assert "the window is 0" in " ".join(violations(VICTIM, HEIR, window=0))


def test_torn_last_row_counts_as_not_recorded(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(VICTIM.tobytes()[:-5])
    assert len(load(path)) == len(VICTIM) - 1
