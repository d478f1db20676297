"""What was used, as charts and tables. Pure."""
