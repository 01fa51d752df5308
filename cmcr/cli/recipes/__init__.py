"""pipelines.yaml and what it says to a command. No command and no stage is defined here."""
