"""Our events, and the formats that are translated into them."""
