"""Any dual encoder of transformers, opened from a folder or the hub."""
