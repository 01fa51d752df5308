"""Published data sets as their publishers offer them, made manifests that extraction reads."""
