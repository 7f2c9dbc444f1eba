"""Questions to the read models, shared by the API and the command line."""
