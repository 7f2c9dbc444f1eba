"""Webhooks: integration events for other services over HTTPS, signed as Standard Webhooks 1.0.0 has it."""
