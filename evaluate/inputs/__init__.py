"""What a task is given: items, classes, scenes and their truth. No task is known here."""
