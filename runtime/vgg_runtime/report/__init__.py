"""A result for a person: tables, the page, the comparison of results."""
