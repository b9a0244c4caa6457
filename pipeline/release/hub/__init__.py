"""Publishing on the Hugging Face Hub: what is there, what is sent, and what went wrong."""
