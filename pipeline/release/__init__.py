"""What a released folder says about itself."""
