"""The extraction service over HTTP: it embeds what it is sent, and searches what is embedded."""
