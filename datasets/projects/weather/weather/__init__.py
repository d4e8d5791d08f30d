"""Station data and forecasts."""
