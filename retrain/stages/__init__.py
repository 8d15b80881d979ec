"""The stages of a run. Each stores its result, so that an interrupted run continues after the last one."""
