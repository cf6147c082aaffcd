"""What a run is judged by: predictions, measures, and where each metric is shown."""
