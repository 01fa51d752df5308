"""What a command did, as JSON lines in the file that `--log` names."""
