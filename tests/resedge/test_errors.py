from __future__ import annotations

import pytest

from resedge.errors import worst


@pytest.mark.parametrize(
    ("codes", "code"),
    [((), 0), ((0, 0), 0), ((0, 3), 3), ((3, 1), 1), ((1, 4), 4), ((4, 6), 6), ((6, 5), 5), ((0, 5, 2), 2)],
)
def test_the_worst_of_several_exit_codes(codes: tuple[int, ...], code: int) -> None:
    assert worst(codes) == code
