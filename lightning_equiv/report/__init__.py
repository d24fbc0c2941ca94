"""What a report is made of and how it is written: one HTML page, Markdown, the terminal, pictures."""
