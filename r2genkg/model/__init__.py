"""An image, the scales and the tokens -> the prefix that the language model reads -> a report."""
