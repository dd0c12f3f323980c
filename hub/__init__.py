"""Models on the Hugging Face Hub: downloads into folders, and folders published as repositories."""
