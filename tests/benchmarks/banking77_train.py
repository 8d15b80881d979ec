"""The training of `banking77`, as a benchmark of its own: it takes some ten minutes."""

from banking77 import train


def main() -> dict[str, float]:
    """See `banking77.train`."""
    return train()
