"""The calibration table says what would have happened on the rows that it was made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.mlops.calibrate import calibrate

rows = st.lists(
    st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60
)


@given(rows)
def test_each_step_sends_its_share_and_has_its_quality(data: list[tuple[float, float, float]]) -> None:
    margin, weak, strong = (np.array(column) for column in zip(*data, strict=True))
    costs = np.stack((np.full(len(data), 1.0), np.full(len(data), 4.0)), axis=1)
    table = calibrate("w", "s", margin, (weak, strong), costs)
    assert list(table.margins) == sorted(table.margins, reverse=True)
    for step in range(101):
        sent = (margin > table.margins[step]) + table.ties[step] * (margin == table.margins[step])
        assert sent.mean() == pytest.approx(step / 100, abs=1e-5)
        assert table.quality[step] == pytest.approx((sent * strong + (1 - sent) * weak).mean(), abs=1e-5)
        assert table.cost is not None
        assert table.cost[step] == pytest.approx((1 + 3 * step / 100) / 4, abs=1e-5)
    assert calibrate("w", "s", margin, (weak, strong), None).cost is None
