"""Nothing -> configuration, files that appear whole or not at all, seeds and devices, weights without pickle."""
