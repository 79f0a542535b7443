"""The paper's tables and figures, and what it takes for granted, measured."""
