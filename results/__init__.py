"""What a run is tested on and what it leaves: class splits and metrics, features, its folder, results.json."""
