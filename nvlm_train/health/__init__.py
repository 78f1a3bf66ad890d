"""The health of a job of several processes: do they fit together, do they all go on, and which of them ended it."""
