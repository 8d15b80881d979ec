"""The jobs, their schedule, and the queue of runs."""
