"""Systems that answer: the protocol, and where base models come from."""
