"""Commands that find: what a search asks once, and the server that answers for long."""
