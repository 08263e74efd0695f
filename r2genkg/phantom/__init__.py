"""A seed -> drawn chest X-rays with masks, facts and reports: data whose truth is known."""
