"""The terminal: flags that several commands take, and what commands print."""
