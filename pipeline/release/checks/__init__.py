"""What can be said of a released folder from its manifest and its base model alone."""
