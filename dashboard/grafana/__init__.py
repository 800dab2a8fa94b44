"""Grafana dashboards as code: `panels` says how, a module a dashboard what; `generate` writes."""
