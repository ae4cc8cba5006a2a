"""What is off by default: each extra is plugged in at one named place, and nothing else knows it."""
