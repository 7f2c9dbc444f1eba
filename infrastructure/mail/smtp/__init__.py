"""Mail servers over SMTP."""
