"""What is off by default: each file is plugged in at one place, and nothing else knows it."""
