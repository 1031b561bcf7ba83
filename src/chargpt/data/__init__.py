"""Text -> tokens -> splits -> blocks."""
