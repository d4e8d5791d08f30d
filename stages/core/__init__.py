"""What the stages share. Importing anything here never imports MLX."""
