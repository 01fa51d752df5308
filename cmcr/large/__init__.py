"""What may be larger than memory: arrays and tables in mapped files, texts compared in parts."""
