"""Dashboards as code. `python -m deploy.grafana` writes the JSON files in this folder; a test keeps them current.

panels.py      a panel and a dashboard as Grafana's JSON, with a datasource and a run variable
dashboards.py  what is on the five dashboards, in the metric table's own names
"""
