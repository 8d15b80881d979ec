"""The scheduler of the jobs: it keeps their intervals when the clock is set."""

from datetime import datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger


class Every(BaseTrigger):  # type: ignore[misc]
    """Runs a job some seconds after its last turn, whatever the time was then; APScheduler's own trigger adds up times
    of the clock."""

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, _: datetime | None, now: datetime) -> datetime:
        return now + self._interval


class Scheduler(BackgroundScheduler):  # type: ignore[misc]
    """A scheduler whose jobs wait no longer than if they were added now: else, after a clock was set back, none would
    run until it caught up."""

    def _process_jobs(self) -> float | None:
        now = datetime.now(self.timezone)
        waits = list[float]()
        for job in self.get_jobs():
            due = job.trigger.get_next_fire_time(None, now)
            if due is None:
                continue
            if due < job.next_run_time:
                job.modify(next_run_time=due)
            if due > now:
                waits.append((due - now).total_seconds())
        seconds: float | None = super()._process_jobs()
        # The clock may be set back during this call, too.
        return seconds if seconds is None else min([seconds, *waits])
