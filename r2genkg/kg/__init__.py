"""Annotated reports -> the knowledge graph M3KG -> graphs at five scales; import, export, comparison, a page."""
