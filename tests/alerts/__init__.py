"""Every alert is fired by its real fault, against a real Prometheus: `make test-alerts`."""
