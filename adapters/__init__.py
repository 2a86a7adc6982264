"""The ground both processes stand on: records, artifacts, settings. Knows neither gateway nor trainer."""

import gc

# What the libraries make when they are imported stays. To look through it again and again, as Python does by itself after every
# 700 objects, was a quarter of the time that a run needs to begin.
gc.set_threshold(10_000, 10, 10)
