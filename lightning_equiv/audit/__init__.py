"""The report card of a model: a document, and what writes it as a page, Markdown and text."""
