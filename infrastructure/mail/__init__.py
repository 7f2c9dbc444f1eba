"""Mail: rendering and composing, circuits and limits of mail servers, claims to send, the embedded mailbox."""
