"""Keys, sealed personal data, and password hashes."""
