"""The ground both processes stand on: records, artifacts, settings. Knows neither gateway nor trainer."""

import gc

# What the libraries make when they are imported stays. To look through it again and again, as Python does by itself after every
# 700 objects, was an eighth of the time that a run needs to begin (docs/log.md).
gc.set_threshold(10_000, 10, 10)
