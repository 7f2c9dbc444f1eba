"""The pages that people look at in a browser: the front door, the sign-up by form, and the mailbox."""
