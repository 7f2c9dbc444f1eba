"""The story of one registration, told from its events in words that can be read aloud; nothing personal is in it."""
