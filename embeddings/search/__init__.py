"""What a search adds to inner products. Nothing here knows an encoder or a connection."""
