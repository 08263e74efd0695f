"""Reports -> annotated sentences: by rules, by a language model on a sample, or by models trained on its answers."""
