"""A report -> sentences, terms with polarity, relations, and the 14 CheXpert labels, by rules or CheXbert."""
