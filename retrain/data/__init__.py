"""What a training learns from and is judged on."""
