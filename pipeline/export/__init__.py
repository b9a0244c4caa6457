"""From a plan to a folder that anyone can load, and the proof that it is what it says."""
