"""Questions to the read models and the log, shared by the API and the command line.

What they return are views of their own: how they are shown is left to the caller.
"""
