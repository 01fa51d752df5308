"""The command line: one typed function a command. Nothing heavy is imported before one runs."""
