"""The stages of a run, one file each: what determines a stage's output, and how it is made."""
