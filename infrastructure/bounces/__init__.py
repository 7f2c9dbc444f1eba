"""Mails that come back: addresses that name them, notifications by mail, and the providers' webhooks."""
