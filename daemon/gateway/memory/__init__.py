"""The gateway's copy of the memory of corrections: its feed, the look-up for a request, and answers from it."""
