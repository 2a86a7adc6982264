"""The ground both processes stand on: records, artifacts, settings. Knows neither gateway nor trainer."""
