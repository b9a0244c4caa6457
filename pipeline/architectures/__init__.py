"""What can be cut in each model family: data about tensors' names, axes and config attributes."""
