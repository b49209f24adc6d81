"""Tables and figures from archives."""
