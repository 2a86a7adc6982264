"""Dashboards as code: what Grafana shows, what Prometheus scrapes, records and alerts on.

Knows the names of metrics and nothing of the code that emits them; imports none of the other packages.
"""
