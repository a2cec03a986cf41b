"""What a run shows of itself: reflection, readability, change points, plots, and tracking in MLflow."""
