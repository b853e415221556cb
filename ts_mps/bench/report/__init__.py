"""Studies rendered: one page, charts, tables and Markdown, all made from the same chapters."""
