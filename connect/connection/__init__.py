"""What a connection is, and its files. It knows neither data nor training."""
