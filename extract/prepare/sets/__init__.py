"""What each published data set is, where it is got, and how its own files name its items."""
