"""How many rows may be too long for a training."""

import pytest

from retuned.retrain.settings import TrainSettings
from retuned.retrain.training.batches import too_long


@pytest.mark.parametrize(
    ("tried", "fitting", "share", "trains"),
    [(10, 10, 0.0, True), (10, 9, 0.0, False), (10, 9, 0.1, True), (10, 8, 0.1, False), (10, 0, 1.0, False)],
)
def test_a_run_ends_where_more_rows_are_too_long_than_may_be(
    tried: int, fitting: int, share: float, trains: bool
) -> None:
    error = too_long(tried, fitting, TrainSettings(maximum_too_long_share=share))
    assert (error is None) == trains
    if error:
        assert f"{tried - fitting} of {tried} rows" in error
