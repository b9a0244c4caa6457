"""Models and corpora, wherever they are: Hub, folder, GGUF, package, standard library."""
