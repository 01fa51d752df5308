"""What a recipe needs, looked at before it is run."""
