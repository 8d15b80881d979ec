"""The one estimator of all rates of votes: intervals, differences of two arms, and design effects."""
