"""A run -> reports with evidence, pages, figures, the app, and every command of `r2genkg`."""
