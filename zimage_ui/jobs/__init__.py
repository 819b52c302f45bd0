"""From request to finished job: one bounded queue, one worker thread, one board of states."""
