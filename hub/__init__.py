"""The Hugging Face Hub: names to folders, folders to repositories."""
