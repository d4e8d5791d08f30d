"""What the clinic stores."""
