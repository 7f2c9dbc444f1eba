"""Synthetic registrations: the probe that makes them, and the sink that their mails go to."""
