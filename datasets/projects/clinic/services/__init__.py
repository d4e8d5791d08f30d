"""What the clinic does."""
