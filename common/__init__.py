"""What every other package may use: files written whole, files read safely, locks, the command line's manners."""
