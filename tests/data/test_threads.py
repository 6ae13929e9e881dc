"""Calls by threads: every one of them once, and the first error."""

import pytest

from atmc.data.threads import cores, for_each


@pytest.mark.parametrize("count", [0, 1, 64, 65, 300])
def test_every_call_is_made_once(count):
    called = []
    for_each(called.append, count)
    assert sorted(called) == list(range(count))
    assert cores() >= 1


def test_the_first_error_is_raised():
    def fail(index):
        if index >= 70:
            raise ValueError(index)

    with pytest.raises(ValueError, match=r"^70$"):
        for_each(fail, 1000)
